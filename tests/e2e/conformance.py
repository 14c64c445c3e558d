"""jupyter_kernel_test's public suite for one kernel; run as a program in a sandbox's environment.

    python conformance.py KERNEL ENGINE

Prints one JSON object: test name -> "ok", or "skipped: why", or "failed: ...".
"""

from __future__ import annotations

import json
import sys
import unittest

import jupyter_kernel_test as jkt

KERNEL, ENGINE = sys.argv[1:3]


class Python:
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": ["zip"]}, {"text": "imp"}]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('boom')"
    code_execute_result = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "'ä€'*2", "result": "'ä€ä€'"},
    ]
    code_display_data = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))", "mime": "text/latex"},
        {"code": "from IPython.display import JSON, display; display(JSON({'a': [1]}))", "mime": "application/json"},
    ]
    code_history_pattern = "1?2*"
    # As ipykernel's own tests have it: "range" names the current session 0, which the suite does not expect.
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class R:
    language_name = "R"
    file_extension = ".r"
    code_hello_world = "cat('hello, world\\n')"
    code_stderr = "message('error')"
    completion_samples = [{"text": "zi"}, {"text": "seq_l", "matches": ["seq_len"]}]
    complete_code_samples = ["1", "print('hello, world')", "f <- function(x) {x*2}"]
    incomplete_code_samples = ["print('hello", "f <- function(x) {x*2"]
    code_page_something = "?cat"
    code_generate_error = "stop('boom')"
    code_execute_result = []
    code_display_data = [
        {"code": "1:3", "mime": "text/plain"},
        {"code": "IRdisplay::display_html('<b>test</b>')", "mime": "text/html"},
    ]
    code_inspect_sample = "print"
    code_clear_output = "IRdisplay::clear_output()"


class Deno:
    language_name = "typescript"
    file_extension = ".ts"
    code_hello_world = "console.log('hello, world')"
    code_stderr = "console.error('error')"
    completion_samples = [{"text": "Den"}]
    complete_code_samples = ["1", "let a = 1;"]
    incomplete_code_samples = ["function f() {"]
    code_generate_error = "throw new Error('boom')"
    # No results and displays: it sends them without waiting for them to be sent, at times after its own idle.
    # It answers inspect_request with "not found" always.


SAMPLES = {"python3": Python, "ir": R, "deno": Deno}[ENGINE]


class Suite(SAMPLES, jkt.KernelTests):
    kernel_name = KERNEL
    flushing = False

    @classmethod
    def setUpClass(cls) -> None:
        """The suite gives each message on iopub 0.1 s, which a machine that runs several tests at once does not
        always keep. Its flush, which waits for silence, keeps its 0.1 s."""
        super().setUpClass()
        channel = cls.kc.iopub_channel
        ask = channel.get_msg
        channel.get_msg = lambda timeout=None: ask(timeout=timeout if cls.flushing or timeout is None else max(timeout, 10))

    def flush_channels(self) -> None:
        type(self).flushing = True
        super().flush_channels()
        type(self).flushing = False


class Welcome(jkt.IopubWelcomeTests):
    kernel_name = KERNEL
    # Whether the engine says so itself is asked of the engine: the bare kernel gets the same question.
    support_iopub_welcome = ENGINE == "python3"


class Record(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def say(self, test: unittest.TestCase, what: str) -> None:
        name = test.id().removeprefix("__main__.")
        # A subtest that was skipped or failed says more than its test's "ok".
        if not what == "ok" or name not in self.seen:
            self.seen[name] = what

    def addSuccess(self, test):
        self.say(test, "ok")

    def addSkip(self, test, reason):
        self.say(test, f"skipped: {reason}")

    def addFailure(self, test, err):
        self.say(test, f"failed: {self._exc_info_to_string(err, test)[-1500:]}")

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        self.say(subtest, "ok" if err is None else f"failed: {self._exc_info_to_string(err, test)[-1500:]}")


def main() -> None:
    loader, record = unittest.TestLoader(), Record()
    unittest.TestSuite([loader.loadTestsFromTestCase(Suite), loader.loadTestsFromTestCase(Welcome)]).run(record)
    json.dump(record.seen, sys.stdout, indent=1)


main()
