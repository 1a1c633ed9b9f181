"""How far to trust what is said of today's services: by what is known of the one that is recommended."""

from llmpilot.predict.service.knowledge import Knowledge
from llmpilot.recommendation.answer import UNFIT, Trust
from llmpilot.recommendation.forecast import Judged, Simulated
from llmpilot.recommendation.offers import step_model_of
from llmpilot.recommendation.question import Offered, Question

UNSERVED = Trust("high", "that it cannot be served so is a fact, not a prediction")


def trust_of(question: Question, knowledge: Knowledge, simulated: Simulated, result: Judged) -> Trust:
    """Return the trust in the service that comes first, recommended or not."""
    if result.first is None:
        return UNFIT if any(why.startswith("does not fit") for _, why in simulated.unfit) else UNSERVED
    return trust_in(question, knowledge, simulated.offered[result.first])


def trust_in(question: Question, knowledge: Knowledge, offered: Offered) -> Trust:
    """Return the trust in what is said of one service of the question."""
    service = step_model_of(offered)
    asked = question.asked
    kin = knowledge.kin(service, asked.input_tokens, asked.output_tokens)
    off = [
        f"{error:.0%} ({name})"
        for name, error in (("TPOT", kin.tpot_error), ("TTFT", kin.ttft_error))
        if error is not None
    ]
    said = (
        f"in the median, predictions that knew no more were off by {' and '.join(off)}"
        if off
        else ("how far off predictions of such services are was never measured")
    )
    return Trust(kin.trust, f"{kin.words}; {said}", kin.remarks)
