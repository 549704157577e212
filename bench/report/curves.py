"""The picture of exercise 3: validation loss from scratch, and begun from a run on another text."""

from bench.recipes.exercises import BEGINNINGS
from bench.report.html import Markup, tag
from bench.report.walk_pictures import drawing, text

WIDE, HIGH, LEFT, TOP = 520, 240, 60, 30
CLASSES = ("curve grey", "curve")


def picture(programs: dict[str, dict]) -> str | None:
    """SVG from the figures of `bench.recipes.exercises finetune`; None where they are missing.

    The first evaluation, before any step, would leave no room for the others, and is left out.
    """
    if "exercises-finetune" not in programs:
        return None
    rows = programs["exercises-finetune"]["rows"][1:]
    steps = [row["step"] for row in rows]
    losses = {name: [float(row[name]) for row in rows] for name in BEGINNINGS}
    low, high = (f(loss for each in losses.values() for loss in each) for f in (min, max))

    def place(step: int, loss: float) -> tuple[float, float]:
        x = LEFT + WIDE * (step - steps[0]) / (steps[-1] - steps[0])
        return round(x, 1), round(TOP + HIGH * (high - loss) / (high - low), 1)

    parts = [text(8, 18, "Validation loss on tiny shakespeare, mean of three seeds")]
    for step in steps:
        parts.append(text(place(step, low)[0] - 10, TOP + HIGH + 24, step, class_="small"))
    parts.append(text(LEFT + WIDE // 2 - 12, TOP + HIGH + 42, "steps", class_="small"))
    for (name, each), kind in zip(losses.items(), CLASSES, strict=True):
        parts += _curve([place(*point) for point in zip(steps, each, strict=True)], kind)
        x, y = place(steps[-1], each[-1])
        parts.append(text(x + 8, y + 4, f"{name}, {each[-1]:.2f}", class_="small"))
        parts.append(text(8, place(steps[0], each[0])[1] + 4, f"{each[0]:.2f}", class_="small"))
    return drawing(LEFT + WIDE + 200, TOP + HIGH + 54, "Pretrain, then finetune", *parts)


def _curve(points: list[tuple[float, float]], kind: str) -> list[Markup]:
    return [tag("polyline", points=" ".join(f"{x},{y}" for x, y in points), class_=kind)]
