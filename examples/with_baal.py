"""baal with prunefuse's heuristic: BALD of dropout passes, which the model gives as logits."""

import numpy as np
import torch
from baal.active import ActiveLearningDataset, ActiveLearningLoop
from baal.bayesian.dropout import patch_module
from baal.modelwrapper import ModelWrapper, TrainingArgs
from sklearn.datasets import load_digits
from torch import nn

from prunefuse.adapters.baal import Uncertainty

torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y))
pool = ActiveLearningDataset(torch.utils.data.Subset(data, range(1200)))
test = torch.utils.data.Subset(data, range(1200, len(data)))
pool.label(list(range(30)))

network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10))
model = ModelWrapper(
    patch_module(network),  # dropout stays on when predicting
    TrainingArgs(
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        criterion=nn.CrossEntropyLoss(),
        batch_size=32,
        epoch=20,
        use_cuda=False,
        workers=0,
    ),
)
loop = ActiveLearningLoop(
    pool, model.predict_on_dataset, heuristic=Uncertainty("bald"), query_size=20, iterations=10
)
for _ in range(4):
    model.train_on_dataset(pool)
    passes = model.predict_on_dataset(test, iterations=10)  # (N, C, passes)
    predicted = passes.mean(-1).argmax(1)
    print(f"{len(pool)} labels: accuracy {np.mean(predicted == y[1200:]):.3f}")
    loop.step()
