"""Renders the bundled pictures, depthzoo/examples: NAME.jpg and NAME.depth.png, 480x640."""

from pathlib import Path

import depthzoo
from train.codec import encode_depth, encode_image
from train.rooms import render

FOLDER = Path(depthzoo.__file__).parent / "examples"
# Seeds of the rooms, by the name of the picture.
SEEDS = {"desk": 3, "kitchen": 17, "office": 10}


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, seed in SEEDS.items():
        room = render(seed)
        (FOLDER / f"{name}.jpg").write_bytes(encode_image(room.image, quality=92)[1])
        (FOLDER / f"{name}.depth.png").write_bytes(encode_depth(room.depth))
        print(FOLDER / f"{name}.jpg")


if __name__ == "__main__":
    main()
