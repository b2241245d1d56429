"""Lets a chart follow the colours that its reader's system prefers.

python scheme.py CHART.svg
"""

import sys

# matplotlib writes colours into each element, so that a rule must say that it counts before them.
STYLE = """<style>
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 !important; }
#patch_1 path, #patch_2 path { fill: #0d1117 !important; }
[style*="stroke: #000000"] { stroke: #e6edf3 !important; }
[style*="fill: #ffffff"] { fill: #0d1117 !important; }
[style*="#6a51a3"] { stroke: #b39ddb !important; }
text[style*="#6a51a3"] { fill: #b39ddb !important; stroke: none !important; }
}
</style>
"""


def follow_scheme(path):
    """Adds the rules to a file that does not have them."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if STYLE in text:
        return
    start = text.index(">", text.index("<svg")) + 1
    with open(path, "w", encoding="utf-8") as file:
        file.write(text[:start] + "\n" + STYLE + text[start:].lstrip("\n"))


if __name__ == "__main__":
    follow_scheme(sys.argv[1])
