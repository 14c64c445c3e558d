# The cell of the demo: gradient descent on a small problem, as slow as a small model on a small machine. It says
# what it does with print and a tqdm bar, and keeps a file of every line it printed, which nobody else writes: the
# demo holds what farside delivered against it.
import random
import time

from tqdm import tqdm

random.seed(7)
points = [(x / 50, 3.0 * x / 50 - 1.0 + random.gauss(0, 0.1)) for x in range(-50, 50)]
slope, offset, rate = 0.0, 0.0, 0.1
with open(PRINTED, "w", buffering=1) as witness:  # noqa: F821 (the demo says where)
    for epoch in range(1, EPOCHS + 1):  # noqa: F821
        for step in tqdm(range(1, STEPS + 1), desc=f"epoch {epoch}", ncols=70):  # noqa: F821
            batch = random.sample(points, 20)
            errors = [(slope * x + offset - y, x) for x, y in batch]
            slope -= rate * 2 * sum(e * x for e, x in errors) / len(batch)
            offset -= rate * 2 * sum(e for e, _ in errors) / len(batch)
            loss = sum(e * e for e, _ in errors) / len(batch)
            time.sleep(0.1)
            if step % 5 == 0:
                line = f"epoch {epoch} step {step:3} loss {loss:.5f}"
                print(line, flush=True)
                witness.write(line + "\n")
    line = f"trained: y = {slope:.3f} x {offset:+.3f}"
    print(line)
    witness.write(line + "\n")
