"""The README's picture of what was measured without a card: seconds to a loss, tokens a second."""

from bench.report.walk_pictures import box, drawing, text

LEFT, WIDE, HIGH = 230, 360, 24  # where bars begin, the longest, and how high they are
LECTURE = ("lecture", 1)  # model and batch


def picture(programs: dict[str, dict]) -> str | None:
    """SVG from the figures of `bench.recipes.quickstart` and `bench.recipes.decode`; None where one is missing."""
    if not {"quickstart", "decode"} <= programs.keys():
        return None
    race = programs["quickstart"]["rows"][-1]
    speakers = [
        row for row in programs["decode"]["rows"] if (row["model"], row["batch"]) == LECTURE
    ]
    slowest, fastest = (f(speakers, key=lambda row: row["tokens/s"]) for f in (min, max))
    mark = race["nanoGPT's loss"]
    groups = {
        f"Seconds of training to nanoGPT's final loss, {mark}": [
            ("nanoGPT's CPU recipe", race["nanoGPT, seconds"]),
            ("make train", race["quickstart, seconds to that loss"]),
        ],
        "Tokens per second, the lecture's model, one sample": [
            (slowest["who"], slowest["tokens/s"]),
            (fastest["who"], fastest["tokens/s"]),
        ],
    }
    parts, y = [], 20
    for title, bars in groups.items():
        parts.append(text(8, y, title))
        most = max(figure for _, figure in bars)
        for kind, (name, figure) in zip(("done", "now"), bars, strict=True):
            length = round(WIDE * figure / most, 1)
            parts += [
                text(8, y + 28, name, class_="small"),
                box(LEFT, y + 12, length, HIGH, kind),
                text(LEFT + length + 6, y + 29, f"{figure:g}"),
            ]
            y += HIGH + 6
        y += 40
    return drawing(660, y - 20, "Measured on two CPU cores", *parts)
