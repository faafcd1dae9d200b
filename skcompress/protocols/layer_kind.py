"""What has to be said about a kind of layer so that everything else can work on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from .factors import Factors
from .inputs import Inputs, Lookups
from .recurrence import Recurrence

# Of the `copy.deepcopy` under way: what stands for an object, by the object's id.
Memo = dict[Any, Any]


@dataclass(frozen=True)
class Slot:
    """One weight of a layer, as decompositions and regularizers see it.

    name : what it adds to the layer's name; "" where the layer has one weight
    groups : how many independent weights are stored side by side
    read : gives the weight as (groups, out, in, *kernel), with gradient where it has one, as
        a view of what stores it unless it is computed
    parameters : what stores it; several where it is parametrized
    part : which part of the parameter it is, where one parameter stores several weights;
        None where it is all of it
    tieable : whether a layer that shares the parameter can share the factors
    bias : the parameter of the layer that is added to what this weight alone gives, where it is
        another than `bias`; by its name in the layer
    """

    name: str
    groups: int
    read: Callable[[], Tensor]
    parameters: tuple[nn.Parameter, ...]
    part: int | None = None
    tieable: bool = True
    bias: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(groups, out, in, *kernel)."""
        return tuple(self.read().shape)

    @property
    def size(self) -> int:
        """Stored numbers; more than the weight has where it is parametrized."""
        if self.part is not None:
            return prod(self.shape)
        return sum(p.numel() for p in self.parameters)

    @property
    def requires_grad(self) -> bool:
        """Whether the weight is trained."""
        return any(p.requires_grad for p in self.parameters)


class LayerKind(ABC):
    """How the weights of one kind of layer are read, and what stands in for it.

    To be registered in the entry-point group `skcompress.layers`. Where kinds of several
    packages could take a module, the one of the most derived class does.

    types : classes of modules that are of this kind, with all that derive from them
    name : what the kind is registered as
    takes_pivots : whether `build` takes factors of which a part is left out
    takes_sparse : whether it takes a sparse term
    """

    name: ClassVar[str]
    types: tuple[type[nn.Module], ...] = ()
    # Why its factors save no FLOPs that can be told beforehand; None where they do.
    saves_no_flops: ClassVar[str | None] = None
    takes_pivots: ClassVar[bool] = False
    takes_sparse: ClassVar[bool] = False

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is of this kind, compressible or not.

        To be written by a kind without `types`, which knows its modules by what they hold.
        """
        return isinstance(module, self.types)

    def refusal(self, module: nn.Module) -> str | None:
        """Say why this module cannot be compressed; None if it can."""
        return None

    @abstractmethod
    def slots(self, module: nn.Module) -> list[Slot]:
        """List the weights of a module that was not refused."""

    @abstractmethod
    def build(self, module: nn.Module, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        """Give the module that stands in for `module`, which is `Factorized`.

        factors : by slot name, tensors that are `nn.Parameter`s; slots that stay dense
            are missing.
        memo : of the `copy.deepcopy` under way; what is taken over from `module` is
            copied with it, so that sharing survives: `copy.deepcopy(module.bias, memo)`.

        Values are not to be looked at: there may be none, on the meta device.
        """

    def describe(self, stand_in: nn.Module) -> dict[str, Any]:
        """Say, in words of JSON, what `rebuild` has to know beside the shapes of the factors.

        To be written where a stand-in is more than `build` makes of the module and its factors.
        """
        return {}

    def rebuild(
        self,
        module: nn.Module,
        factors: Mapping[str, Factors],
        description: Mapping[str, Any],
        memo: Memo,
    ) -> nn.Module:
        """Give a stand-in that was saved: without values, which are loaded afterwards.

        module, factors : as for `build`, on the meta device
        description : what `describe` said; it comes from a file, whoever wrote that
        """
        return self.build(module, factors, memo)

    def stages(self, stand_in: nn.Module, slot: str) -> list[str]:
        """Name the modules of a stand-in that apply the stages of a slot, in their order."""
        chain = stand_in.get_submodule(slot)
        return [f"{slot}.{name}".lstrip(".") for name, _ in chain.named_children()]

    @abstractmethod
    def inputs(
        self, module: nn.Module, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs | Lookups]]:
        """Yield what weights of a module, in eval mode, are applied to in one call of it.

        wanted : names of the slots that are asked for; others may be left out
        call : what its forward receives, by name of the argument
        """

    def recurrences(self, module: nn.Module) -> Sequence[Recurrence]:
        """List the parts of a module that are given again what they gave, in their order.

        To be written where weights change what they are applied to later in the same call: they
        are then fitted to inputs from a run of their own. Weights of no such part are fitted as
        those of other layers are.
        """
        return ()

    def outputs(self, module: nn.Module, output: Tensor) -> dict[str, Inputs]:
        """Cut a tensor like the module's output into columns y = W x of its weights.

        output : what a call of the module gives, but for a bias, or a gradient there

        By slot name, laid out as `inputs` are: (groups, out, positions), at the same
        positions. A weight whose own output never leaves the module is missing, as here.
        """
        return {}


class Factorized(ABC):
    """Mixed into every module that stands in for a layer.

    kind : what the kind that builds it is registered as
    own : attributes that the layer it stands in for does not have
    """

    kind: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ()
    # What a layer answers to those who look at it is no part of what TorchScript compiles.
    __jit_unused_properties__: ClassVar[list[str]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__jit_unused_properties__ = [
            name for name in dir(cls) if isinstance(getattr(cls, name, None), property)
        ]

    @abstractmethod
    def factors(self) -> dict[str, Factors]:
        """Give what it multiplies by now, by slot name, as `LayerKind.build` was given it."""

    def to_plain(self, memo: Memo) -> nn.Module | str:
        """Give the same function in modules of torch.nn alone, or say why there are none."""
        return f"a {type(self).__name__}, which says of no torch.nn modules that they do the same"

    @abstractmethod
    def to_dense(self, memo: Memo) -> nn.Module:
        """Give an ordinary layer with the same function; `memo` keeps shared parts shared."""
