"""What a benchmark prints, as its tests read it."""

Row = dict[str, str]


def tables(report: str, heading: str) -> list[list[Row]]:
    """The tables below a heading."""
    (section,) = (part for part in report.split("\n## ") if part.startswith(heading))
    found: list[list[Row]] = []
    columns: list[str] = []
    for line in section.splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not columns:
            columns = cells
            found.append([])
        elif set(cells) != {"---"}:
            found[-1].append(dict(zip(columns, cells, strict=True)))
    return found


def first(cell: str) -> float:
    """The first number of a cell."""
    return float(cell.split()[0].replace(",", ""))
