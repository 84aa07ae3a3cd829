"""A GPU for tests of clocks: the host queues work at its own pace, the device does it in order at another."""

from types import SimpleNamespace

import torch

LAUNCH = 5e-6  # seconds of the host
CLOCKS = 2e9


class FakeGpu:
    """`put` takes the place of what is asked of torch.cuda; `kernel` is a call that keeps the device busy."""

    def __init__(self, cache=126 << 20):
        self.host = self.free = 0.0  # the time on the host; when the device will have done all that is queued
        self.cache = cache
        self.evicted = []  # bytes, of every eviction

    def kernel(self, seconds, host=0.0):
        self.host += host + LAUNCH
        self.free = max(self.host, self.free) + seconds

    def wait(self, *_):
        self.host = max(self.host, self.free)

    def put(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                pass

            def record(self):
                self.at = max(gpu.host, gpu.free)

            def synchronize(self):
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, other):
                return 1000 * (other.at - self.at)

        def ones(count, device):
            def add_(_):
                gpu.evicted.append(4 * count)
                gpu.kernel(8 * count / 3e12)

            return SimpleNamespace(add_=add_)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda clocks: gpu.kernel(clocks / CLOCKS))
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=self.cache)
        )
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
        monkeypatch.setattr(torch, "ones", ones)
        return self
