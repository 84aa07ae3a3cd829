"""From a trained network to half of its FLOPs, to an ONNX file, to int8 by torchao, with accuracy on digits at every step."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from torchao.quantization.pt2e import quantize_pt2e as pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from prunefuse import Recipe, plan_pruning, save_tensors
from prunefuse.data import load
from prunefuse.models import resnet8
from prunefuse.pruning import Target
from prunefuse.training import evaluate, train

torch.manual_seed(0)
data = load("digits")
images, labels = torch.stack([x for x, _ in data.test]), torch.tensor([int(y) for _, y in data.test])
folder = tempfile.TemporaryDirectory()
file, batch = Path(folder.name, "model"), torch.export.Dim("batch")


accuracy = lambda logits: (logits.argmax(1) == labels).float().mean().item()  # noqa: E731


def tell(step, right):
    print(f"{step:28} accuracy {right:.3f}, a file of {file.stat().st_size:,} bytes")


def saved(model):
    save_tensors(file, model.state_dict())
    return evaluate(model, data.test)


def in_onnxruntime(model):
    how = {"input_names": ["x"], "dynamic_shapes": ({0: batch},), "external_data": False, "verbose": False}
    torch.onnx.export(model, (images[:2],), file, **how)
    return accuracy(torch.from_numpy(onnxruntime.InferenceSession(file).run(None, {"x": images.numpy()})[0]))


dense = resnet8(in_channels=1)
train(dense, data.train, Recipe(epochs=6, batch_size=64, schedule="one-cycle"))
tell("dense", saved(dense))
small = plan_pruning(dense, images[:1], target=Target("flops", 0.5)).extract(dense)
tell("pruned to half of its FLOPs", saved(small))
train(small, data.train, Recipe(epochs=3, batch_size=64, lr=0.05, schedule="one-cycle"))
tell("trained again", saved(small.eval()))
tell("ONNX, in onnxruntime", in_onnxruntime(small))

seen = torch.stack([data.pool[i][0] for i in range(256)])  # what the ranges of activations are taken from
quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
program = torch.export.export(small, (seen,), dynamic_shapes=({0: batch},))
observed = pt2e.prepare_pt2e(program.module(), quantizer)
observed(seen)
quantized = pt2e.convert_pt2e(observed)
print(f"{'int8, in torch':28} accuracy {accuracy(quantized(images)):.3f}")
tell("int8, in onnxruntime", in_onnxruntime(quantized))
