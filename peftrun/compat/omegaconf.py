"""OmegaConf 2.3: the resolvers and constructors by which it reads YAML, for another parser; and the parts of a key. Light."""

from omegaconf._utils import get_yaml_loader, split_key

__all__ = ["get_yaml_loader", "split_key"]
