"""One-line mistakes in `gpt/training/out_of_memory.py`, and what each would break."""

FILE = "gpt/training/out_of_memory.py"
TESTS = ["tests/gpt/training/test_out_of_memory.py"]
MUTATIONS = [
    ('        trial(number)\n', '        step = trial(number)\n        [o.step() for o in gradients.optimizers]\n', 'a trial updates the live weights'),
    ('if not plan.batch_size % rows)', 'if True)', 'the suggested batch size does not divide the batch'),
    ('    except RuntimeError as error:\n        if not hardware.out_of_memory(error):\n            raise\n        return False', '    except ValueError:\n        return False', 'a trial that fails is a traceback'),
]
