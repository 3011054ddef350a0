"""Read the settings of a command from its options, the environment and a TOML file."""

import logging
import sys
import tomllib
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.config.settings import EngineSettings, ServeSettings, parse

Settings = TypeVar("Settings", ServeSettings, EngineSettings)


def read_settings(kind: type[Settings], arguments: list[str], program: str) -> Settings | None:
    """Return the settings and set up logging. Print each problem and return None if they are invalid."""
    try:
        settings = parse(kind, arguments, program)
        if isinstance(settings, ServeSettings):
            settings.keys()
            settings.admin_keys()
            settings.tool_settings()
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            print(f"{program}: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return None
    except (SettingsError, OSError, ValueError, tomllib.TOMLDecodeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return None
    logging.basicConfig(
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        level=settings.log_level.upper(),
        stream=sys.stderr,
    )
    return settings
