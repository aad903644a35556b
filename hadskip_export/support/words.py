"""How things are counted in a sentence."""


def counted(number: int, thing: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
