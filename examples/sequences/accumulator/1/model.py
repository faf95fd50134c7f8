"""Adds up the inputs of each sequence. The server keeps the sum: it is an output, and an input of the next request."""


class Model:
    def infer(self, inputs):
        total = inputs["SUM"] + inputs["INPUT"]
        return {"OUTPUT": total, "NEW_SUM": total}
