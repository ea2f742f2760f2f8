"""The forecasts of one channel, region and lead time, start by start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from areas import inside, point_weights
from exact import D, Decimal, mean, total
from inputs import Input

Point = Callable[["Start", int], "Decimal | None"]


@dataclass(frozen=True)
class Start:
    """One forecast. region: points of it; weight: of all points."""

    given: Input
    init: datetime
    lead: int
    channel: str
    members: int
    weight: list[Decimal]
    region: list[int]

    @property
    def valid(self) -> datetime:
        return self.init + timedelta(hours=self.lead)

    def of(self, channel: str) -> Start:
        return replace(self, channel=channel)

    @property
    def _c(self) -> int:
        return self.given.channels.index(self.channel)

    def x(self, n: int) -> list[Decimal]:
        """Members at a point."""
        return self.given.members_at(self.init, self.lead, self._c, n)[: self.members]

    def scored(self, n: int) -> bool:
        return self.given.truth[self.valid][self._c][n] is not None

    def y(self, n: int) -> Decimal:
        """Truth at a point."""
        value = self.given.truth[self.valid][self._c][n]
        assert value is not None
        return D(value)

    def reference(self, name: str, n: int) -> Decimal | None:
        value = self.given.reference[name][self.valid][self._c][n]
        return None if value is None else D(value)

    def area_mean(self, point: Point) -> Decimal | None:
        """Weighted mean over the scored points of the region at which the value exists."""
        scored = [n for n in self.region if self.scored(n)]
        found = [(v, self.weight[n]) for n in scored if (v := point(self, n)) is not None]
        weight = total(w for _, w in found)
        return total(v * w for v, w in found) / weight if weight else None

    def used_weight(self, point: Point) -> Decimal:
        return total(self.weight[n] for n in self.region if self.scored(n) and point(self, n) is not None)


@dataclass(frozen=True)
class Sample:
    """All starts. average: "starts" or "weights"."""

    starts: list[Start]
    average: str

    @property
    def members(self) -> int:
        return self.starts[0].members

    @property
    def first(self) -> Start:
        return self.starts[0]

    def of(self, channel: str) -> Sample:
        return Sample([s.of(channel) for s in self.starts], self.average)

    def mean(self, point: Point) -> Decimal | None:
        """Mean over starts of the means over the area; starts without a value do not count."""
        means = [(m, s.used_weight(point)) for s in self.starts if (m := s.area_mean(point)) is not None]
        if not means:
            return None
        if self.average == "starts":
            return mean([m for m, _ in means])
        return total(m * w for m, w in means) / total(w for _, w in means)

    def known(self, point: Point) -> Decimal:
        """The mean, which has to exist."""
        found = self.mean(point)
        assert found is not None
        return found

    def each(self, value: Callable[[Start], Decimal | None]) -> Decimal | None:
        """Mean over starts of what each start gives."""
        assert self.average == "starts"
        found = [v for s in self.starts if (v := value(s)) is not None]
        return mean(found) if found else None


def sample(
    given: Input, channel: str, region: str, lead: int, weights: object, members: int, average: str
) -> Sample:
    weight = point_weights(given, weights)
    land = given.land_fraction or [None] * given.grid.size  # type: ignore[list-item]
    points = [n for n, p in enumerate(given.grid.points) if inside(region, *p, land[n])]
    starts = [Start(given, init, lead, channel, members, weight, points) for init in given.inits]
    return Sample(starts, average)
