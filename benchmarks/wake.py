"""What it takes to have a model back that is asleep: from host memory, and by a load, in one run.

python benchmarks/wake.py [--mib 256] [--rounds 15] [--device cpu|cuda] [--json FILE]

One server has the same torch model three times: one that sleeps in host memory, one that is unloaded and loaded by a
fork of a zygote, one that is loaded by exec. In each round each of them is put to sleep, and then asked over HTTP: the
time is that of the answer. On the CPU the model is a Python class with methods of its own, `offload` (its weights
become a map of their file) and `restore`; on a GPU it is a file of safetensors, which the PyTorch engine moves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from start import POLL_S, START_S, Server

WAYS = {
    "from host memory": "sleep: host-memory\n",
    "load by a fork": "sleep: unload\n",
    "load by exec": "sleep: unload\nstart: exec\n",
}
CLASS = """
import os
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(ROWS, 16))

    def forward(self, x):
        return x * self.table[0] + self.table[ROWS - 1] - 1
"""
PYTHON = """
class Model:
    def load(self, context):
        self.path = os.path.join(context.directory, "weights.pt")
        self.net = Net()
        self.net.load_state_dict(torch.load(self.path))

    def infer(self, inputs):
        with torch.inference_mode():
            return {"y": self.net(torch.from_numpy(inputs["x"])).numpy()}

    def offload(self):
        self.net.load_state_dict(torch.load(self.path, mmap=True), assign=True)

    def restore(self):
        for each in self.net.parameters():
            each.data = each.data.clone()
"""
TENSORS = """inputs: [{name: x, datatype: FP32, shape: [16]}]
outputs: [{name: y, datatype: FP32, shape: [16]}]
ttl: never
preload: torch
"""


class SleepyServer(Server):
    def __init__(self, mib: int, device: str) -> None:
        super().__init__("eager")
        self.names = {way: f"m{number}" for number, way in enumerate(WAYS)}
        for way, name in self.names.items():
            self._write_model(name, mib, device, WAYS[way])
            self.load(name)
            self.ask(name)

    def _write_model(self, name: str, mib: int, device: str, options: str) -> None:
        import torch  # noqa: PLC0415 - takes two seconds, and --help needs none of it

        folder = self.repository / name / "1"
        folder.mkdir(parents=True)
        code, weights = CLASS.replace("ROWS", str(mib << 14)), {"table": torch.full((mib << 14, 16), 2.0)}
        if device == "cpu":
            torch.save(weights, folder / "weights.pt")
            (folder / "model.py").write_text(code + PYTHON)
        else:
            from safetensors.torch import save_file  # noqa: PLC0415 - for a GPU only

            save_file(weights, folder / "model.safetensors")
            (folder / "model.py").write_text(code.replace("class Net", "class Model"))
            options += f"device: {device}\ntrusted: true\n"
        (self.repository / name / "mmsup.yaml").write_text(TENSORS + options)

    def put_to_sleep(self, name: str) -> float:
        """MB that its workers hold then."""
        self.ctl("sleep", name=name)
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            (model,) = [each for each in self.ctl("status")["models"] if each["name"] == name]
            if all(each["state"] == "offloaded" for each in model["instances"]):
                return sum(each["memory_bytes"] or 0 for each in model["instances"]) / 1e6
            time.sleep(POLL_S)
        raise SystemExit(f"{name} does not go to sleep: {model}")

    def held_mb(self, name: str) -> float:
        (model,) = [each for each in self.ctl("status")["models"] if each["name"] == name]
        return sum(each["memory_bytes"] or 0 for each in model["instances"]) / 1e6


def asked_s(server: SleepyServer, name: str) -> float:
    began_s = time.monotonic()
    server.ask(name)
    return time.monotonic() - began_s


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of weights")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    server = SleepyServer(options.mib, options.device)
    rounds: list[dict[str, float]] = []
    try:
        awake = {way: server.held_mb(name) for way, name in server.names.items()}
        asleep = dict.fromkeys(server.names, 0.0)
        for _ in range(options.rounds):
            found: dict[str, float] = {}
            for way, name in server.names.items():
                asleep[way] = server.put_to_sleep(name)
                found[way] = asked_s(server, name)
            rounds.append(found)
    finally:
        server.close()
    first = next(iter(server.names))
    machine = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    print(f"{machine}; {options.mib} MiB of weights on {options.device}")
    print(
        f"medians of {options.rounds} rounds\n\n| asleep | first answer, ms | / host memory | awake, MB | asleep, MB |"
    )
    print("|---|---|---|---|---|")
    for way in server.names:
        took_s = statistics.median(each[way] for each in rounds)
        ratio = statistics.median(each[way] / each[first] for each in rounds)
        print(f"| {way} | {took_s * 1e3:.1f} | {ratio:.1f} | {awake[way]:.0f} | {asleep[way]:.0f} |")
    if options.json:
        options.json.write_text(json.dumps({"awake_mb": awake, "asleep_mb": asleep, "rounds": rounds}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
