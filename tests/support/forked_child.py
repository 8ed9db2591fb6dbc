"""What a process of `forked.py` does. Apart from it, because importing that module starts a server."""

import os
import sys


def run_code(code: str, arguments: list[str], environment: dict[str, str], folder: str, cwd: str) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)  # so that every machine rounds alike
    sys.argv = ["cinema-fast", *arguments]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
