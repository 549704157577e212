"""The rules for every compiled kernel, and the comparison with the committed ledger."""

from kernels.common.launch import SHARED_MEMORY


def findings(row: dict) -> list[str]:
    """One line for each rule that a kernel breaks."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    found = []
    if row["spills"]:
        found.append(f"spills registers: {row['spills']} loads and stores of local memory")
    if row.get("overwritten"):
        found.append(f"overwrites {row['overwritten']} operands of matrix products in flight")
    if row["atomics"]:
        found.append(f"has {row['atomics']} atomic instructions: its sums have no fixed order")
    for architecture in row["architectures"]:
        limit = SHARED_MEMORY[architecture]
        if row["shared"] > limit:
            needed = f"needs {row['shared']:,} bytes of shared memory"
            found.append(f"{needed}; sm_{architecture} has {limit:,}")
    if row["products"] and not row["tensor"]:
        found.append(f"has {row['products']} matrix products but no tensor-core instruction")
    found += [f"loads {place} at a time instead of 16" for place in row["narrow"]]
    return found


def changes(rows: list[dict], committed: list[dict]) -> list[str]:
    """One line for each difference from the committed rows."""
    now = {f"{row['target']} {row['key']}": row for row in rows}
    then = {f"{row['target']} {row['key']}": row for row in committed}
    found = [f"{place}: is new" for place in now.keys() - then.keys()]
    found += [f"{place}: is gone" for place in then.keys() - now.keys()]
    for place in now.keys() & then.keys():
        old, new = then[place], now[place]
        differences = [
            f"{name} {old.get(name)} -> {new.get(name)}"
            for name in sorted((old.keys() | new.keys()) - {"cases", "executed"})
            if old.get(name) != new.get(name)
        ]
        if differences:
            found.append(f"{place}: {', '.join(differences)}")
    return sorted(found)
