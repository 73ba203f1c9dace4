"""`umamba describe`: show the stages of a network at a plan, and their cost."""

import logging
import textwrap

from umamba.settings import DescribeSettings

log = logging.getLogger(__name__)


def main(settings: DescribeSettings) -> None:
    """Show a network's stages, their cost, and where the paper and its code disagree about the network.

    Args:
        settings: the network, and the plan, dataset or checkpoint that gives its sizes.

    Raises:
        UserError: nothing gives a plan, or the network cannot be built at that plan.
    """
    from umamba.networks.cost import network_cost
    from umamba.networks.cost_table import beside_mamba, cost_table, disagreements
    from umamba.runs.network_at_plan import network_at_plan

    chosen = network_at_plan(settings)
    configuration, name = chosen.configuration, chosen.architecture.name
    cost = network_cost(chosen.architecture, configuration, chosen.in_channels, chosen.num_classes)
    patch = " x ".join(map(str, configuration.patch_size))
    title = f"{name} at {configuration.name}, patch {patch}, {chosen.num_classes} outputs"
    log.info(cost_table(cost, title, configuration.batch_size))
    log.info(_wrapped(f"Plan: {chosen.origin}."))
    beside = beside_mamba(chosen.architecture, configuration, chosen.in_channels, chosen.num_classes)
    if beside:
        log.info(_wrapped(beside))
    found = disagreements(chosen.architecture, configuration)
    log.info("Where the U-Mamba paper and its released code disagree%s", ":" if found else ": nowhere, here.")
    for line in found:
        log.info(_wrapped(line, "  "))


def _wrapped(text: str, indent: str = "") -> str:
    """Return a sentence in lines of at most 80 characters."""
    return textwrap.fill(
        text,
        80,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
