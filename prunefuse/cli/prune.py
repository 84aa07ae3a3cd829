"""``prunefuse prune``: its options, and the one call they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunefuse._names import CRITERIA_WITHOUT_DATA, PLAN_PRESETS, QUANTITIES
from prunefuse.cli.errors import reported

_AMOUNT = "as a fraction of the dense model's or an amount"


def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="resnet18, torchvision:resnet18 or timm:resnet18; package.module:function, which builds the model; or "
            "an .onnx file.",
            metavar="MODEL",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="New folder for weights, plan.json and model.json; of an .onnx file, the new .onnx file.",
            metavar="PATH",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the dense model: .safetensors, or what torch.load reads with weights_only.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Fraction of channels to remove.", metavar="X", show_default="0.5 without a target"
        ),
    ] = None,
    target_flops: Annotated[
        str | None, typer.Option(help=f"FLOPs, {_AMOUNT}.", metavar="X", show_default=False)
    ] = None,
    target_parameters: Annotated[
        str | None, typer.Option(help=f"Parameters, {_AMOUNT}.", metavar="X", show_default=False)
    ] = None,
    target_memory: Annotated[
        str | None,
        typer.Option(help=f"Bytes of weights and activations, {_AMOUNT}.", metavar="X", show_default=False),
    ] = None,
    target_latency: Annotated[
        str | None,
        typer.Option(
            help="Time of one forward on this machine, as a fraction or such as 5ms; not of an .onnx file.",
            metavar="X",
            show_default=False,
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help=f"{', '.join(CRITERIA_WITHOUT_DATA)}.", metavar="NAME")
    ] = "l2",
    preset: Annotated[str, typer.Option(help=f"{' or '.join(PLAN_PRESETS)}.", metavar="NAME")] = "prunefuse",
    ranking: Annotated[
        str | None, typer.Option(help="local or global.", metavar="NAME", show_default="of the preset")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Module (of an .onnx file also node or tensor), or pattern, whose output channels stay; may be given "
            "again.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    round_to: Annotated[int, typer.Option(help="Keep multiples of so many channels.", metavar="N")] = 1,
    min_channels: Annotated[int, typer.Option(help="Keep at least so many.", metavar="N")] = 1,
    min_fraction: Annotated[
        float | None,
        typer.Option(
            help="Keep at least this part of every axis.",
            metavar="X",
            show_default="0.1 in global ranking",
        ),
    ] = None,
    heads: Annotated[
        str,
        typer.Option(
            help="What attention loses: whole (heads), or inside (channels of every head); not of an .onnx file.",
            metavar="NAME",
        ),
    ] = "whole",
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="Shape of an input with its batch, and its dtype if not float32: 1x16:int64. Again for more inputs.",
            metavar="SHAPE",
            show_default="1x3x224x224; of an .onnx file, what it says",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Of models of torchvision and timm.", metavar="N", show_default="theirs"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of random, and of weights without a checkpoint.", metavar="N")
    ] = 0,
) -> None:
    """Prune a model to a ratio or a target, and write the small one's weights and the plan to a new folder."""
    texts = dict(
        zip(QUANTITIES, (target_parameters, target_flops, target_memory, target_latency), strict=True)
    )
    with reported():
        from prunefuse.cli import prune_files
        from prunefuse.errors import ConfigError, RunError

        try:
            targets = [
                prune_files.parse_target(name, text) for name, text in texts.items() if text is not None
            ]
            if len(targets) + (ratio is not None) > 1:
                raise ValueError("target must be one of a ratio and the targets, got several")
            wanted: dict[str, Any] = {
                "ratio": ratio,
                "target": targets[0] if targets else None,
                "criterion": criterion,
                "preset": preset,
                "ranking": ranking,
                "ignore": ignore or (),
                "round_to": round_to,
                "min_channels": min_channels,
                "min_fraction": min_fraction,
                "seed": seed,
            }
            shapes = [prune_files.parse_input(text) for text in input_ or []]
            if model.endswith(".onnx"):
                if heads != "whole":
                    raise ValueError(f"heads must be whole for an ONNX file, got {heads!r}")
                plan = prune_files.prune_onnx(
                    Path(model), out, weights=weights, num_classes=num_classes, inputs=shapes, **wanted
                )
                typer.echo(f"{plan.summary()}\n\nWritten to {out}.")
                return
            plan, loading = prune_files.prune_to_folder(
                prune_files.find_model(model, num_classes),
                out,
                weights=weights,
                inputs=shapes or [prune_files.parse_input("1x3x224x224")],
                heads=heads,
                **wanted,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        except RuntimeError as error:  # the model cannot be captured
            raise RunError(str(error)) from error
        typer.echo(plan.summary())
        if weights is None:
            typer.echo("note: no --weights: the model is as its function builds it")
        typer.echo(f"\nWritten to {out}. To load it:\n\n{loading}")
