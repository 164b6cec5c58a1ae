"""OmegaConf 2.3: the resolvers and constructors by which it reads YAML, for another parser. Light."""

from omegaconf._utils import get_yaml_loader

__all__ = ["get_yaml_loader"]
