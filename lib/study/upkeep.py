"""Tables that grow machine by machine and model by model: new rows take the place of their own."""

from pathlib import Path

import pandas as pd

from ffmerge.files import replacing


def update_table(path: Path, rows: pd.DataFrame, by: list[str], digits: int = 4) -> pd.DataFrame:
    """Write rows to a CSV file; those that are there already and are about something else stay.

    Args:
        path: of the file, which may not be there yet.
        rows: the new ones.
        by: columns that say what a row is about, in the file and in the new rows.
        digits: of its numbers.

    Returns:
        All rows: those that stayed, then the new ones. Never half-written.
    """
    table = rows
    if path.exists():
        before = pd.read_csv(path)
        new = set(rows[by].itertuples(index=False, name=None))
        stays = [key not in new for key in before[by].itertuples(index=False, name=None)]
        table = pd.concat([before[stays], rows]) if any(stays) else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format=f"%.{digits}g")
    return table
