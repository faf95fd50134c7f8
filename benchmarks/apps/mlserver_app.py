"""MLServer's side: its numpy codec, or base64 for what is large."""

import arithmetic
import mlserver
import numpy as np
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceResponse
from settings import LARGE, SHAPE


class Model(mlserver.MLModel):
    async def load(self):
        self.model = arithmetic.make()
        return True

    async def predict(self, payload):
        if LARGE:
            x = np.frombuffer(Base64Codec.decode_input(payload.inputs[0])[0], np.float32).reshape(SHAPE)
            output = Base64Codec.encode_output("y", [self.model(x).tobytes()], use_bytes=False)
        else:
            output = NumpyCodec.encode_output("y", self.model(NumpyCodec.decode_input(payload.inputs[0])))
        return InferenceResponse(model_name=self.name, outputs=[output])
