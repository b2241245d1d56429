#!/usr/bin/env python3
"""Draws docs/terminal.svg: what the program shows in a terminal while it works, from a real run.

    scripts/terminal-svg.py FILE.svg

Runs the demo (scripts/demo.sh) with each call of the program in a terminal of its own, takes what stands
there, and writes it as an SVG whose colours follow the reader's. `make pictures` calls it. It needs nothing
but Python's standard library, the program and the demo's server.
"""

import fcntl
import html
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS = 110
ROWS = 200
# What a line begins with that is not shown: every column of events that stays as it is.
LIST = "left to their defaults"
# Set for the demo, which then calls this script in place of the program.
RECORDINGS = "TERMINAL_SVG_RECORDINGS"
PROGRAM = "TERMINAL_SVG_PROGRAM"

# Measures of a letter, in pixels.
WIDTH, HEIGHT, MARGIN, BAR = 8.43, 18, 16, 30

LETTERS = re.compile(rb"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b.|\r|\n|[^\x1b\r\n]+")


def words(line):
    """The letters of a line."""
    return "".join(letter for letter, _ in line)


class Screen:
    """What stands in a terminal: enough of one for progress bars and colours."""

    def __init__(self):
        self.lines = [[]]
        self.row = self.column = 0
        self.style = ""
        # Rows that go on with the one above.
        self.wrapped = set()

    def write(self, data):
        """Takes what a program has printed."""
        for match in LETTERS.finditer(data):
            piece = match.group()
            if piece == b"\r":
                self.column = 0
            elif piece == b"\n":
                self._down()
                self.wrapped.discard(self.row)
            elif match.group(2):
                self._control(match.group(1).decode(), match.group(2).decode())
            elif not piece.startswith(b"\x1b"):
                for letter in piece.decode("utf-8", "replace"):
                    self._put(letter)

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _put(self, letter):
        if self.column == COLUMNS:
            self.column = 0
            self._down()
            self.wrapped.add(self.row)
        line = self.lines[self.row]
        line.extend([(" ", "")] * (self.column + 1 - len(line)))
        line[self.column] = (letter, self.style)
        self.column += 1

    def _control(self, numbers, letter):
        first = int(numbers.split(";")[0]) if numbers.split(";")[0].isdigit() else 0
        if letter == "A":
            self.row = max(0, self.row - max(1, first))
        elif letter == "B":
            for _ in range(max(1, first)):
                self._down()
        elif letter == "G":
            self.column = max(1, first) - 1
        elif letter == "K" and first == 2:
            self.lines[self.row] = []
        elif letter == "K":
            del self.lines[self.row][self.column :]
        elif letter == "J":
            del self.lines[self.row][self.column :]
            del self.lines[self.row + 1 :]
        elif letter == "m":
            self._colour(numbers)

    def _colour(self, numbers):
        names = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y", "34": "u", "36": "c"}
        for number in (numbers or "0").split(";"):
            if number in ("0", "22", "39"):
                self.style = ""
            elif number in names:
                self.style = names[number]

    def text(self):
        """All lines, without what is empty at their end and at the end of all, and without long lists."""
        lines, is_list = [], False
        for row, line in enumerate(self.lines):
            is_list = is_list if row in self.wrapped else words(line).startswith(LIST)
            if is_list and row not in self.wrapped:
                lines.append([("…", "d")])
            elif not is_list:
                lines.append(list(line))
        for line in lines:
            while line and line[-1] == (" ", ""):
                line.pop()
        while lines and not lines[-1]:
            lines.pop()
        return lines


def record():
    """Is the program for the demo: runs it in a terminal, and keeps what it prints and when."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    arguments = sys.argv[1:]
    process = subprocess.Popen(
        [os.environ[PROGRAM], *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    begun, pieces = time.monotonic(), []
    while True:
        ready, _, _ = select.select([leader], [], [], 0.1)
        try:
            data = os.read(leader, 65536) if ready else b""
        except OSError:
            break
        if data:
            pieces.append((time.monotonic() - begun, data.decode("utf-8", "replace")))
            # The demo's reader sees it too.
            os.write(1, data)
        elif process.poll() is not None:
            break
    name = f"{time.time():.3f}.json"
    with open(os.path.join(os.environ[RECORDINGS], name), "w", encoding="utf-8") as file:
        json.dump({"arguments": arguments, "pieces": pieces}, file)
    return process.wait()


def recordings(directory):
    """What each call of the program has printed, by its first word."""
    calls = {}
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            call = json.load(file)
        word = call["arguments"][0]
        calls["run" if word.startswith("-") else word] = call
    return calls


def at_the_end(call):
    """The screen once a call has ended."""
    screen = Screen()
    for _, piece in call["pieces"]:
        screen.write(piece.encode())
    return screen.text()


def in_the_middle(call):
    """The screen when the bar of observations was about two thirds full."""
    screen, best = Screen(), None
    for _, piece in call["pieces"]:
        screen.write(piece.encode())
        lines = screen.text()
        flat = [words(line) for line in lines]
        percents = [int(found) for line in flat for found in re.findall(r"(\d+)\s?%", line)]
        if percents and (best is None or abs(percents[-1] - 66) < best[0]):
            best = (abs(percents[-1] - 66), lines)
    if best is None:
        sys.exit("The run was over before it showed how far it was: set DEMO_OBSERVATIONS higher.")
    return best[1]


def typed(command):
    """A line with a command."""
    return [("$", "g"), (" ", "")] + [(letter, "b") for letter in command]


def command_of(call):
    """The command line of a call, as somebody would type it."""
    return " ".join(["events-backfill", *call["arguments"]])


def shown(calls):
    """The lines of the picture."""
    lines = [typed(command_of(calls["run"])), *in_the_middle(calls["run"])]
    lines += [[], typed(command_of(calls["status"])), *at_the_end(calls["status"])]
    verified = at_the_end(calls["verify"])
    # Of the last month; the lines that are all zeros say the same thing many times.
    flat = [words(line) for line in verified]
    first = [at for at, line in enumerate(flat) if line.startswith("Partition")][-1]
    chosen = [
        line
        for line, text in zip(verified[first:], flat[first:])
        if text and not text.endswith(" 0")
    ]
    lines += [[], typed(command_of(calls["verify"])), [("…", "d")], *chosen]
    return lines


def svg(lines):
    """The picture."""
    width = round(COLUMNS * WIDTH + 2 * MARGIN)
    height = BAR + MARGIN + len(lines) * HEIGHT + MARGIN
    rows = []
    for number, line in enumerate(lines):
        y = BAR + MARGIN + number * HEIGHT + 4
        x, spans = 0, []
        while x < len(line):
            end = x
            while end < len(line) and line[end][1] == line[x][1]:
                end += 1
            text = html.escape("".join(letter for letter, _ in line[x:end]))
            style = f' class="{line[x][1]}"' if line[x][1] else ""
            place = MARGIN + x * WIDTH
            length = (end - x) * WIDTH
            if text.strip():
                spans.append(
                    f'<tspan x="{place:.1f}"{style} textLength="{length:.1f}"'
                    f' lengthAdjust="spacingAndGlyphs">{text}</tspan>'
                )
            x = end
        if spans:
            rows.append(f'<text y="{y}" xml:space="preserve">{"".join(spans)}</text>')
    dots = "".join(
        f'<circle class="dot" cx="{MARGIN + 6 + 18 * place}" cy="{BAR / 2 + 3}" r="5"/>'
        for place in range(3)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>events-backfill in a terminal</title>
<style>
text {{ font: 14px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; }}
.window {{ fill: #f6f8fa; stroke: #d1d9e0; }}
.dot {{ fill: #c5ccd3; }}
.b {{ font-weight: 700; }} .d {{ fill: #6a737d; }} .g {{ fill: #1a7f37; }} .r {{ fill: #cf222e; }}
.y {{ fill: #9a6700; }} .u {{ fill: #0969da; }} .c {{ fill: #1b7c83; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3; }}
.window {{ fill: #0d1117; stroke: #30363d; }}
.dot {{ fill: #484f58; }}
.d {{ fill: #9198a1; }} .g {{ fill: #3fb950; }} .r {{ fill: #f85149; }}
.y {{ fill: #d29922; }} .u {{ fill: #4493f8; }} .c {{ fill: #39c5cf; }}
}}
</style>
<rect class="window" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>
{dots}
{chr(10).join(rows)}
</svg>
"""


def main():
    """Runs the demo, and draws."""
    if len(sys.argv) != 2:
        sys.exit("usage: terminal-svg.py FILE.svg")
    built = os.path.join(
        os.environ.get("CARGO_TARGET_DIR", os.path.join(REPOSITORY, "target")), "release"
    )
    program = os.environ.get("DEMO_PROGRAM", os.path.join(built, "events-backfill"))
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            RECORDINGS: directory,
            PROGRAM: program,
            "DEMO_PROGRAM": os.path.abspath(__file__),
            "DEMO_OBSERVATIONS": os.environ.get("DEMO_OBSERVATIONS", "600000"),
        }
        subprocess.run([os.path.join(REPOSITORY, "scripts/demo.sh")], env=environment, check=True)
        picture = svg(shown(recordings(directory)))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    if RECORDINGS in os.environ:
        sys.exit(record())
    main()
