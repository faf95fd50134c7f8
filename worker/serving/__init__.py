"""Receives requests, runs them, sends replies, holds results that wait for memory."""
