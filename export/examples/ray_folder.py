"""Predict the depth of many images on one machine or a cluster, with Ray Data.

    PYTHONPATH=export python export/examples/ray_folder.py unet_mobilenet_v3.onnx s3://bucket/photos depths

writes OUTPUT/NAME.depth.png (16-bit millimetres) for each image file NAME under INPUT, or for each row of parquet
files. Run it again to continue: images with a depth in OUTPUT are skipped. Ray repeats the work of workers that die.
"""

import argparse
import io
from pathlib import Path
from typing import NoReturn

import ray
import run_onnx  # type: ignore[import-not-found]
from pyarrow.fs import FileSelector, FileSystem


class Depth:
    """A worker with one onnxruntime session."""

    def __init__(self, model: bytes, source: str, target: str, provider: str) -> None:
        self.model = run_onnx.OnnxDepth(model, provider, threads=1)
        self.source, (self.files, self.target) = source, FileSystem.from_uri(target)

    def __call__(self, batch: dict) -> dict:
        images, errors = {}, dict.fromkeys(batch["path"], "")
        for path, content in zip(batch["path"], batch["bytes"], strict=True):
            data = (
                content["bytes"] if isinstance(content, dict) else content
            )  # a dict: as Hugging Face has it
            try:
                images[path] = run_onnx.open_image(io.BytesIO(data), path)
            except run_onnx.OnnxError as error:
                errors[path] = str(error)
        for path, depth in zip(images, self.model.predict(list(images.values())), strict=True):
            target = f"{self.target}/{path.removeprefix(self.source)}{run_onnx.DEPTH_SUFFIX}"
            self.files.create_dir(target.rpartition("/")[0])
            with self.files.open_output_stream(f"{target}.part") as file:
                run_onnx.millimetres(depth).save(file, "PNG")
            self.files.move(f"{target}.part", target)
        return {"error": list(errors.values())}


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="ray_folder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a file made by export/to_onnx.py")
    parser.add_argument("input", help="folder or bucket of images, or of parquet files (with --columns)")
    parser.add_argument("output", help="folder or bucket")
    parser.add_argument("--columns", nargs=2, metavar=("NAME", "IMAGE"), help="of the parquet files")
    parser.add_argument("--gpu", action="store_true", help="one GPU per worker instead of one core")
    args = parser.parse_args(argv)
    uris = [text if "://" in text else Path(text).resolve().as_uri() for text in (args.input, args.output)]
    try:
        run_onnx.OnnxDepth(args.model)  # a bad file is an error before Ray starts
        (files, root), (store, target) = map(FileSystem.from_uri, uris)
        found = store.get_file_info(FileSelector(target, recursive=True, allow_not_found=True))
        done = {info.path.removeprefix(f"{target}/").removesuffix(run_onnx.DEPTH_SUFFIX) for info in found}
        if args.columns:
            data = ray.data.read_parquet(root, filesystem=files, num_cpus=0).select_columns(args.columns)
            data = data.rename_columns(dict(zip(args.columns, ("path", "bytes"), strict=True)))
            data = data.filter(lambda row: row["path"] not in done)
        else:
            found = files.get_file_info(FileSelector(root, recursive=True))
            paths = [info.path for info in found if run_onnx.is_image(info.path)]
            todo = [path for path in paths if path.removeprefix(f"{root}/") not in done]
            if not todo:
                parser.exit(0, f"all {len(paths)} images have a depth\n")
            data = ray.data.read_binary_files(todo, filesystem=files, include_paths=True, num_cpus=0)
        ray.cloudpickle.register_pickle_by_value(run_onnx)  # other machines have no copy of it
        worker = (args.model.read_bytes(), f"{root}/", uris[1], "cuda" if args.gpu else "cpu")
        data = data.map_batches(Depth, batch_size=8, fn_constructor_args=worker, num_gpus=int(args.gpu))
        errors = [f"ray_folder: error: {row['error']}\n" for row in data.iter_rows() if row["error"]]
    except (AssertionError, OSError, ValueError) as error:
        parser.error(str(error))
    parser.exit(2 if errors else 0, "".join(errors))


if __name__ == "__main__":
    main()
