"""No teacher: the student alone, which every distiller has to beat."""

from trainables.distillers.base import Distiller, register


@register
class Alone(Distiller):
    """Cross-entropy with the labels only."""

    name = "none"
    title = "the student alone (scratch)"

    def terms(self, config, step, module):
        return {}
