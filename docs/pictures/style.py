"""What all pictures share: colors for day and night, letters, arrows, and how a drawing becomes an SVG file.

A picture is at most 460 units wide, so that its letters can be read on a telephone. Colors are names, not values: a
style sheet inside the file says what they are in the light and in the dark.

    paper  ink  dim  line     background, text, secondary text, thin lines
    blue  orange  green  violet     four kinds of things; the same thing has the same color in every picture:
                                    blue attention and keys, orange the residual stream, green experts, violet the sink
"""

from html import escape

WIDTH = 460
PICTURES = {}  # name: function -> Drawing, filled by @picture

STYLE = """
  .paper { fill: #ffffff } .ink { fill: #1c1b19 } .dim { fill: #6b6963 } .line { fill: #c9c6bf }
  .blue { fill: #2563c9 } .orange { fill: #c2500c } .green { fill: #1d7d46 } .violet { fill: #8b3fc4 }
  .s-ink { stroke: #1c1b19 } .s-dim { stroke: #6b6963 } .s-line { stroke: #c9c6bf } .s-paper { stroke: #ffffff }
  .s-blue { stroke: #2563c9 } .s-orange { stroke: #c2500c } .s-green { stroke: #1d7d46 } .s-violet { stroke: #8b3fc4 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #16181c } .ink { fill: #eceae4 } .dim { fill: #a09d95 } .line { fill: #45484f }
    .blue { fill: #7fb0ff } .orange { fill: #ff9d5c } .green { fill: #5fd08d } .violet { fill: #cf9bff }
    .s-ink { stroke: #eceae4 } .s-dim { stroke: #a09d95 } .s-line { stroke: #45484f } .s-paper { stroke: #16181c }
    .s-blue { stroke: #7fb0ff } .s-orange { stroke: #ff9d5c } .s-green { stroke: #5fd08d } .s-violet { stroke: #cf9bff }
  }
  text { font: 13px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif }
  .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .none { fill: none }
"""


def picture(name):
    """Registers the function that draws docs/pictures/NAME.svg."""
    def register(draw):
        PICTURES[name] = draw
        return draw
    return register


def number(value):
    """A coordinate as it is written: two decimals at most, so that another machine's last digit does not show."""
    return f"{round(value, 2) + 0:.2f}".rstrip("0").rstrip(".")


class Drawing:
    """An SVG that is drawn from the top left, in units of about a pixel. `title` and `description` are for those who
    cannot see it. Every method takes a color by its name in the style sheet."""

    def __init__(self, height, title, description, width=WIDTH):
        self.width, self.height, self.title, self.description = width, height, title, description
        self.parts = []

    def add(self, tag, content=None, **attributes):
        written = "".join(f' {key.replace("_", "-")}="{number(value) if isinstance(value, int | float) else value}"'
                          for key, value in attributes.items() if value is not None)
        self.parts.append(f"<{tag}{written}/>" if content is None else f"<{tag}{written}>{content}</{tag}>")

    def text(self, x, y, words, color="ink", size=13, anchor="start", mono=False, bold=False, turn=0):
        """Words whose base line begins (anchor "start"), has its middle ("middle") or its end ("end") at x, y. Spaces
        are kept. `turn`: degrees clockwise about x, y."""
        self.add("text", escape(str(words)), x=x, y=y,
                 **{"class": f"{color}{' mono' if mono else ''}"}, text_anchor=anchor if anchor != "start" else None,
                 style=f"font-size:{size}px;white-space:pre{';font-weight:600' if bold else ''}",
                 transform=f"rotate({turn} {number(x)} {number(y)})" if turn else None)

    def rect(self, x, y, width, height, fill="none", stroke=None, opacity=None, radius=0, thick=1):
        self.add("rect", x=x, y=y, width=width, height=height, rx=radius or None,
                 **{"class": f"{fill}{f' s-{stroke}' if stroke else ''}"},
                 fill_opacity=opacity, stroke_width=thick if stroke else None)

    def line(self, points, stroke="line", thick=1, dashed=False, arrow=False):
        """A line through points [(x, y), ...]; `arrow`: with a tip at its end."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.add("path", d=path, **{"class": f"none s-{stroke}"}, stroke_width=thick, stroke_linejoin="round",
                 stroke_dasharray="5 4" if dashed else None)
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = max(((x - x0) ** 2 + (y - y0) ** 2) ** 0.5, 1e-9)
            u, v = (x - x0) / length * 7, (y - y0) / length * 7
            tip = [(x, y), (x - u - v / 2, y - v + u / 2), (x - u + v / 2, y - v - u / 2)]
            self.add("path", d="M" + "L".join(f"{number(a)} {number(b)}" for a, b in tip) + "z", **{"class": stroke})

    def level(self, y, left, right, label):
        """A thin line across a chart, and what it stands for."""
        self.line([(left, y), (right, y)])
        self.text(left - 6, y + 4, label, "dim", 12, "end")

    def circle(self, x, y, radius, fill="none", stroke=None, thick=1, opacity=None):
        self.add("circle", cx=x, cy=y, r=radius, **{"class": f"{fill}{f' s-{stroke}' if stroke else ''}"},
                 stroke_width=thick if stroke else None, fill_opacity=opacity)

    def svg(self):
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img">\n'
                f"<title>{escape(self.title)}</title>\n<desc>{escape(self.description)}</desc>\n"
                f"<style>{STYLE}</style>\n"
                f'<rect class="paper" width="{self.width}" height="{self.height}" rx="8"/>\n')
        return head + "\n".join(self.parts) + "\n</svg>\n"
