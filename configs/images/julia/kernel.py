# A Jupyter kernel for Julia as Debian has it. IJulia comes from Julia's own registry, which no image build asks.
"""ipykernel speaks Jupyter's protocol; ``worker.jl``, a process of its own, runs the code."""

from __future__ import annotations

import base64
import os
import selectors
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any, BinaryIO

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

WORKER = Path(__file__).with_name("worker.jl")
BINARY = {"image/png"}


class JuliaKernel(Kernel):
    implementation = "ghost-julia"
    implementation_version = "1"
    banner = "Julia"
    language_info = {"name": "julia", "mimetype": "text/x-julia", "file_extension": ".jl"}  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._start()

    def _start(self) -> None:
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        # The child's 3 and 4, whatever the numbers are here. It does not outlive the kernel, however that ends.
        julia = "exec setpriv --pdeathsig KILL julia --startup-file=no --color=no"
        shell = f'exec 3<&"$1" 4>&"$2"; {julia} "$3"'
        argv = ["bash", "-c", shell, "julia", str(ask_read), str(answer_write), str(WORKER)]
        self._worker = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(ask_read, answer_write),
            process_group=0,
        )
        os.close(ask_read)
        os.close(answer_write)
        self._ask: BinaryIO = os.fdopen(ask_write, "wb")
        self._answers = answer_read

    def pre_handler_hook(self) -> None:
        """Interrupts are Julia's, which has a process group of its own so that it gets each only once."""
        signal.signal(signal.SIGINT, lambda *_: self._worker.send_signal(signal.SIGINT))

    def post_handler_hook(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, Any] | None = None,
        allow_stdin: bool = False,
        *,
        cell_meta: dict[str, Any] | None = None,
        cell_id: str | None = None,
    ) -> dict[str, Any]:
        """Run code; what it prints and shows is sent as it comes."""
        data = code.encode()
        failure = None
        try:
            self._ask.write(struct.pack("<Q", len(data)) + data)
            self._ask.flush()
            failure = self._listen(silent)
        except (EOFError, BrokenPipeError):
            os.close(self._answers)
            failure = ("Died", f"Julia ended with status {self._worker.wait()}; it starts anew", "")
            self._start()
        common = {"execution_count": self.execution_count}
        if failure is None:
            return {**common, "status": "ok", "payload": [], "user_expressions": {}}
        name, message, trace = failure
        lines = [f"{name}: {message}", *trace.strip("\n").splitlines()]
        error = {"ename": name, "evalue": message, "traceback": lines}
        if not silent:
            self.send_response(self.iopub_socket, "error", error)
        return {**common, "status": "error", **error}

    def _listen(self, silent: bool) -> tuple[str, str, str] | None:
        """Pass everything on until the worker is done; returns the error, if there was one."""
        assert self._worker.stdout is not None  # noqa: S101
        assert self._worker.stderr is not None  # noqa: S101
        failure = None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._worker.stdout, selectors.EVENT_READ, "stdout")
            waiting.register(self._worker.stderr, selectors.EVENT_READ, "stderr")
            waiting.register(self._answers, selectors.EVENT_READ, "")
            done = False
            while not done or any(key.data for key, _ in waiting.select(0)):
                # What was printed before an answer is shown before it.
                for key, _ in sorted(waiting.select(), key=lambda pair: not pair[0].data):
                    if key.data:
                        self._pass_on(waiting, key, silent)
                    elif not done:
                        tag = self._exactly(1)
                        done = tag == b"k"
                        failure = self._answer(tag, silent) or failure
        return failure

    def _pass_on(
        self, waiting: selectors.BaseSelector, key: selectors.SelectorKey, silent: bool
    ) -> None:
        text = os.read(key.fd, 1 << 16)
        if not text:
            waiting.unregister(key.fileobj)
        elif not silent:
            content = {"name": key.data, "text": text.decode("utf-8", "replace")}
            self.send_response(self.iopub_socket, "stream", content)

    def _answer(self, tag: bytes, silent: bool) -> tuple[str, str, str] | None:
        if tag == b"e":
            return self._text(), self._text(), self._text()
        if tag in (b"d", b"r"):
            shown = {}
            for _ in range(self._number()):
                mime = self._text()
                data = self._exactly(self._number())
                shown[mime] = (
                    base64.b64encode(data).decode()
                    if mime in BINARY
                    else data.decode("utf-8", "replace")
                )
            content: dict[str, Any] = {"data": shown, "metadata": {}}
            if tag == b"r":
                content["execution_count"] = self.execution_count
            if not silent:
                kind = "execute_result" if tag == b"r" else "display_data"
                self.send_response(self.iopub_socket, kind, content)
        return None

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = os.read(self._answers, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _number(self) -> int:
        return int(struct.unpack("<Q", self._exactly(8))[0])

    def _text(self) -> str:
        return self._exactly(self._number()).decode("utf-8", "replace")

    def do_shutdown(self, restart: bool) -> dict[str, Any]:
        self._worker.kill()
        self._worker.wait()
        return {"status": "ok", "restart": restart}


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=JuliaKernel)
