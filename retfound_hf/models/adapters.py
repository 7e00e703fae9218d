"""Adapters of PEFT: their folders, the base that they name, and models that are made of both.

A folder of an adapter holds `adapter_config.json`, `adapter_model.safetensors` and, from `finetune`, the `config.json`
of the adapted network: names of the classes and problem type, which PEFT does not write. transformers takes a local
folder with a `config.json` for a whole model; of any other adapter it loads the base with the base's own
configuration. So `from_pretrained` of this package's classes looks for adapters itself.
"""

import json
import logging
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import BadModelError, one_line
from .compat import PreTrainedConfig
from .configuration_retfound import ADAPTER_FILE, HUB_OPTIONS, PACKAGED

HEAD = ("fc_norm.", "classifier.")
HIGHEST_RANK = 4096
# Expressions that PEFT matches with the name of every layer: repeated groups, and many repetitions, take for ever.
REPEATED_GROUP, REPETITION, MOST_REPETITIONS = re.compile(r"\)[*+{]"), re.compile(r"[*+{]"), 4
MOST_PATTERNS = 1000


@contextmanager
def errors_of_loading(name_or_path: str | Path) -> Iterator[None]:
    """Turn errors of loading into `BadModelError`, and silence the table of missing and unexpected tensors."""
    logger = logging.getLogger("transformers.modeling_utils")
    # Not its level, which transformers 5 asks whether to report on tensor parallelism.
    before, logger.disabled = logger.disabled, True
    try:
        yield
    except BadModelError:
        raise
    except Exception as error:  # files can be wrong in every way
        reason = one_line(error)
        # The message of torch advises how to let a pickle run.
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in reason:
            reason = "its weights are a pickle that holds more than tensors; nothing in it was run"
        raise BadModelError(f"model {name_or_path} cannot be loaded: {reason}", model=str(name_or_path)) from error
    finally:
        logger.disabled = before


def adapter_base(name_or_path: str | Path, **hub_options: Any) -> str:
    """Folder or Hub id of the model that an adapter belongs onto.

    Raises:
        BadModelError: the adapter names none, or another adapter.
    """
    with errors_of_loading(name_or_path):
        file = find_adapter_config_file(str(name_or_path), **hub_options)
        base = json.loads(Path(str(file)).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or Path(base, ADAPTER_FILE).is_file():
        raise BadModelError(
            f"adapter {name_or_path} names no base model; put its folder or Hub id into {ADAPTER_FILE} as "
            "base_model_name_or_path",
            model=name_or_path,
        )
    path = Path(base)
    # An adapter on weights of the package, made where the package lay elsewhere.
    is_packaged = path.parts[-4:-1] == PACKAGED.parts[-3:] and not path.exists()
    return str(PACKAGED / path.name) if is_packaged else base


def has_config(name_or_path: str | Path, **hub_options: Any) -> bool:
    """Whether an adapter brings the configuration of the adapted network."""
    quiet = [f"_raise_exceptions_for_{what}" for what in ("gated_repo", "missing_entries", "connection_errors")]
    return cached_file(str(name_or_path), "config.json", **dict.fromkeys(quiet, False), **hub_options) is not None


def head_size(name_or_path: str | Path, **hub_options: Any) -> int | None:
    """Number of labels of the head that an adapter brings along; None where it brings none."""
    from peft import load_peft_weights

    with errors_of_loading(name_or_path):
        tensors = load_peft_weights(str(name_or_path), device="cpu", **hub_options)
    return next((len(tensor) for name, tensor in tensors.items() if name.endswith("classifier.weight")), None)


def describe_adapted(config: PreTrainedConfig, name_or_path: str | Path, **hub_options: Any) -> PreTrainedConfig:
    """Change the configuration of a base into that of the adapted network, for an adapter that brings none."""
    labels = head_size(name_or_path, **hub_options)
    if labels not in (None, config.num_labels):
        config.num_labels = labels  # with the names LABEL_0...
    if hasattr(config, "encoder_only"):
        config.encoder_only = True
    config.architectures = None
    return config


def _peft_config(name_or_path: str, **hub_options: Any) -> Any:
    """Configuration of an adapter as PEFT reads it.

    Raises:
        BadModelError: a rank whose matrices would fill the memory, expressions that would take hours, or settings
            for prompts or for Megatron, which name a module to import.
    """
    from peft import PeftConfig

    stored = PeftConfig.from_pretrained(name_or_path, **hub_options)
    patterns = list(_patterns(stored))
    slow = [each for each in patterns
            if REPEATED_GROUP.search(each) or len(REPETITION.findall(each)) > MOST_REPETITIONS]  # fmt: skip
    if slow or len(patterns) > MOST_PATTERNS:
        found = f"the expression {slow[0]!r}" if slow else f"{len(patterns):,} expressions"
        message = f"adapter {name_or_path} names layers by {found}, which may take hours; list the layers by name"
        raise BadModelError(message, model=name_or_path)
    if stored.is_prompt_learning or getattr(stored, "megatron_config", None):
        message = f"adapter {name_or_path} ({stored.peft_type}) is for prompts or for Megatron, not for an encoder"
        raise BadModelError(message, model=name_or_path)
    highest = max(getattr(stored, "r", 1), *(getattr(stored, "rank_pattern", None) or {"": 1}).values())
    if highest > HIGHEST_RANK:
        message = f"adapter {name_or_path} has rank {highest:,}; accepted: up to {HIGHEST_RANK:,}"
        raise BadModelError(message, model=name_or_path)
    return stored


def _patterns(stored: Any) -> Iterator[str]:
    """Regular expressions in the configuration of an adapter."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        found = getattr(stored, name, None) or ()
        if isinstance(found, str):
            yield found
        elif name.endswith("pattern"):
            yield from map(str, found)


def merge_adapter(model: Any, name_or_path: str) -> Any:
    """Base `model` with an adapter merged into its weights, in evaluation mode.

    Raises:
        BadModelError: an adapter of another network, or of a kind that cannot be merged.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    try:
        adapted = PeftModel.from_pretrained(model, name_or_path, config=_peft_config(name_or_path))
        given = load_peft_weights(name_or_path, device="cpu")
        _check_taken(given, get_peft_model_state_dict(adapted), name_or_path, model)
        return adapted.merge_and_unload().eval()
    except BadModelError:
        raise
    except Exception as error:  # files can be wrong in every way
        raise BadModelError(
            f"adapter {name_or_path} cannot be merged into {type(model).__name__}: {one_line(error)}",
            model=name_or_path,
        ) from error


def attach_adapter(
    model: Any, name_or_path: str, adapter_name: str = "default", **hub_options: Any
) -> tuple[set[str], set[tuple[str, Any, Any]]]:
    """Put an adapter into the layers of a classifier, or of its encoder, as `load_adapter` of transformers does.

    `load_adapter` of transformers 5.24 silently loses the magnitudes of DoRA.

    Returns:
        Names of the tensors that the adapter brings, as in the model without it; and name, shape and the model's own
        shape of those of a head of another size, which are left out.

    Raises:
        BadModelError: an adapter of another network, or of a rank above `HIGHEST_RANK`.
    """
    from peft import get_peft_model_state_dict, inject_adapter_in_model, load_peft_weights
    from peft.utils import set_peft_model_state_dict

    config = _peft_config(name_or_path, **hub_options)
    config.inference_mode = True
    given = load_peft_weights(name_or_path, device="cpu", **hub_options)
    given = {name.removeprefix("base_model.model."): tensor for name, tensor in given.items()}
    if model.base_model is model:  # an encoder alone
        own = {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in given.items()}
        given = {name: tensor for name, tensor in own.items() if not name.startswith(HEAD)}
    own = dict(model.named_parameters())
    misfits = {(name, tensor.shape, own[name].shape) for name, tensor in given.items()
               if name.startswith(HEAD) and name in own and own[name].shape != tensor.shape}  # fmt: skip
    left_out = {name for name, *_ in misfits}
    inject_adapter_in_model(config, model, adapter_name)
    taken = {name: own[name].detach() if name in left_out else tensor for name, tensor in given.items()}
    set_peft_model_state_dict(model, taken, adapter_name)
    model._hf_peft_config_loaded = True
    _check_taken(given, get_peft_model_state_dict(model, adapter_name=adapter_name), name_or_path, model)
    model.eval()
    return set(given) - left_out, misfits


def _check_taken(given: Iterable[str], taken: Iterable[str], adapter: str, model: Any) -> None:
    if apart := sorted(set(given) ^ set(taken)):
        raise BadModelError(
            f"adapter {adapter} does not fit {type(model).__name__}: {len(apart)} tensors, such as {apart[0]}, are in "
            "only one of the two",
            model=adapter,
        )


def load_adapted(
    model_class: Any, adapter: str | Path, hub: dict[str, Any], *args: Any, config: Any = None, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Model of the base that an adapter names, with the adapter in its layers.

    Args:
        model_class: with `from_base`; it fits its `_fitted_parameters` of another size itself.
        adapter: folder or Hub id.
        hub: token, revision and the like for the adapter; those of the base are in `kwargs`.
        args, kwargs: of `from_pretrained`.
        config: the adapter's or, from an Auto class that has followed the adapter to its base, that of the base.

    Returns:
        The model, and the report of the loading.
    """
    if kwargs.pop("adapter_kwargs", None) is None:
        kwargs.pop("revision", None)  # the adapter's, where no Auto class has told the two apart
    adapter_name, base = kwargs.pop("adapter_name", "default"), adapter_base(adapter, **hub)
    own, load = has_config(adapter, **hub), model_class.config_class.from_pretrained
    of_base = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    if config is None:
        config, kwargs = load(
            adapter if own else base, return_unused_kwargs=True, **(hub if own else of_base), **kwargs
        )
    elif own and config.name_or_path != str(adapter):
        config = load(adapter, **hub)
    if not own and config.num_labels == type(config).from_pretrained(base, **of_base).num_labels:
        config = describe_adapted(config, adapter, **hub)  # unless another number was asked for
    options = {**kwargs, **of_base, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = model_class.from_base(base, *args, config=config, **options)
    apart = [name for name, *_ in info["mismatched_keys"]
             if not name.startswith(HEAD) and not name.endswith(model_class._fitted_parameters)]  # fmt: skip
    if apart:
        message = f"adapter {adapter} and its base {base} differ in the size of {apart[0]}"
        raise BadModelError(message, model=adapter)
    brought, misfits = attach_adapter(model, str(adapter), adapter_name, **hub)
    info["missing_keys"] = set(info["missing_keys"]) - brought
    info["mismatched_keys"] = misfits | {found for found in info["mismatched_keys"] if found[0] not in brought}
    return model, info
