"""A GPU made up of two clocks: the host's, and the time its stream will be free."""

from types import SimpleNamespace

import torch


class Device:
    """Work is queued at the host's time and runs when the stream is free."""

    def __init__(self):
        self.host = self.free = 0.0

    def queue(self, host, device):
        """The host takes some seconds to start what the device takes others for."""
        self.host += host
        self.free = max(self.free, self.host) + device

    def synchronize(self, device=None):
        self.host = max(self.host, self.free)

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def filling(self, size, dtype, device):
        """A tensor whose filling takes 0.3 ms, started within 5 us."""
        return SimpleNamespace(fill_=lambda value: self.queue(5e-6, 3e-4))

    def use(self, monkeypatch, *modules):
        """Let torch and the clocks of some modules be those of this device."""
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        for module in modules:
            fake = SimpleNamespace(
                perf_counter=lambda: self.host, monotonic=lambda: self.host
            )
            monkeypatch.setattr(module, "time", fake)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.host += 1e-6
        self.time = self.device.free = max(self.device.free, self.device.host)

    def query(self):
        return self.time <= self.device.host

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)
