from streamlstm.core.head import CompiledHead

class HeadSteps:
    compiled: CompiledHead
    state_size: int
