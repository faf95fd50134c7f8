"""Protobuf messages that are defined by public specifications, in descriptor pools of our own."""
