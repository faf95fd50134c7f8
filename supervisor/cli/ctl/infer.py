"""`mmsup ctl infer`: one inference over the server's HTTP address."""

from __future__ import annotations

import json
from typing import BinaryIO

import click

from mmsup.supervisor.cli.ctl.control_client import ServerRefused, call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, parse_object, print_json
from mmsup.supervisor.cli.output.text import cell


@click.command()
@click.argument("model")
@click.option("--version", default="", metavar="V", help="A version; without one the server chooses.")
@click.option("--data", metavar="JSON", help="Values by input, as '{\"x\": [[1, 2]]}'; shapes follow from the nesting.")
@click.option(
    "--json-body",
    type=click.File("rb"),
    metavar="FILE",
    help="A whole request body in the protocol's JSON; - is standard input.",
)
@click.option("--timeout", "timeout_s", default=70.0, show_default=True, help="Seconds to wait for the answer.")
@ctl_command
def infer(
    runtime_dir: str,
    as_json: bool,
    model: str,
    version: str,
    data: str | None,
    json_body: BinaryIO | None,
    timeout_s: float,
) -> None:  # one parameter an option, as click passes them
    """Run a model once, over the server's HTTP address.

    \b
    Example:  mmsup ctl infer digits --data '{"x": [0, 0, 5, 13]}'
              mmsup ctl infer digits --json-body request.json
    """
    from mmsup.supervisor.cli.ctl import inference_client  # noqa: PLC0415 - `ctl --help` does not need it

    if (data is None) == (json_body is None):
        raise click.UsageError("give the values by either --data or --json-body")
    values = parse_object(data, "--data") if data is not None else {}
    address = call_server(runtime_dir, "status").get("addresses", {}).get("http")
    if not address:
        raise ServerRefused("unavailable", "the server has no HTTP address")
    client = inference_client.InferenceClient(address, timeout_s)
    path = inference_client.model_path(model, version)
    try:
        if json_body:
            body = json_body.read()
        else:
            body = json.dumps(inference_client.build_request(values, client.request("GET", path))).encode()
        reply = client.request("POST", f"{path}/infer", body)
    finally:
        client.close()
    if as_json:
        print_json(reply)
        return
    for each in reply.get("outputs", []):
        name, datatype = cell(each.get("name")), cell(each.get("datatype"))
        click.echo(f"{name}  {datatype}  {each.get('shape')}  {json.dumps(each.get('data'))}")
