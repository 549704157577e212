"""What the ledger does not let pass: hard rules for every kernel, and changes nobody has seen."""

from bench.ledger.occupancy import SHARED_MEMORY

AMD_SHARED_MEMORY = 65_536
UNCOMPARED = {"cases", "loop"}


def findings(row: dict) -> list[str]:
    """One line for each rule that a kernel breaks."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    found = []
    if row["spills"]:
        found.append(f"spills registers: {row['spills']} loads and stores of local memory")
    if row.get("overwritten"):
        found.append(f"writes {row['overwritten']} operands of products that are still in flight")
    if row.get("atomics"):
        found.append(f"has {row['atomics']} atomic instructions, so its sums have no fixed order")
    limits = {f"sm_{card}": SHARED_MEMORY[card] for card in row["cards"]}
    if row["target"].startswith("gfx"):
        limits = {row["target"]: AMD_SHARED_MEMORY}
    for card, limit in limits.items():
        if row["shared"] > limit:
            found.append(f"needs {row['shared']:,} bytes of shared memory; {card} has {limit:,}")
    if row.get("products") and not row["tensor"]:
        found.append(f"has {row['products']} matrix products, but no tensor-core instruction")
    found += [f"loads {place} at a time, where 16 are due" for place in row["narrow"]]
    return found


def changes(rows: list[dict], committed: list[dict]) -> list[str]:
    """One line for each difference to the committed rows."""
    now = {(row["target"], row["key"]): row for row in rows}
    then = {(row["target"], row["key"]): row for row in committed}
    found = [f"{_place(now[key])}: is new" for key in now.keys() - then.keys()]
    found += [f"{_place(then[key])}: is gone" for key in then.keys() - now.keys()]
    for key in now.keys() & then.keys():
        differences = [
            f"{figure} {then[key].get(figure)} -> {now[key].get(figure)}"
            for figure in sorted((now[key].keys() | then[key].keys()) - UNCOMPARED)
            if then[key].get(figure) != now[key].get(figure)
        ]
        if differences:
            found.append(f"{_place(now[key])}: {', '.join(differences)}")
    return sorted(found)


def _place(row: dict) -> str:
    return f"{row['target']} {row['key']}"
