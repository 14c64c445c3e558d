// A real JupyterLab page in the system's chromium: what a person sees and clicks.
//
//   node lab.mjs URL TOKEN NOTEBOOK STEP [ARGUMENT]
//
// STEP `start`: opens NOTEBOOK, runs its first cell, waits until its output contains ARGUMENT; says what the
// kernel's status showed. STEP `attach`: opens NOTEBOOK while its first cell runs, runs its third cell, which must be done
// meanwhile, and then the second one, until its output contains ARGUMENT and the kernel is idle again. Prints one JSON object.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.FARSIDE_NODE}/`);
const { chromium } = require("playwright-core");
const [url, token, notebook, step, argument] = process.argv.slice(2);
// A browser start and JupyterLab's 5 MB of scripts, on two busy cores.
const timeout = 60_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const seen = [];
try {
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
  page.setDefaultTimeout(timeout);
  page.on("pageerror", (error) => seen.push(`page error: ${error.message}`));
  // Before its kernel's websocket is there, the page shows the status "idle" of a kernel that it does not have yet.
  let connected = false;
  page.on("websocket", (socket) => (connected ||= socket.url().includes("/channels")));
  await page.goto(`${url}/lab/tree/${notebook}?token=${token}&reset`);
  const panel = page.locator(".jp-NotebookPanel");
  await panel.waitFor();
  // JupyterLab shows the kernel's state as an attribute of the toolbar's indicator.
  const status = () => panel.locator(".jp-Notebook-ExecutionIndicator").first().getAttribute("data-status");
  const until = async (probe, what) => {
    const deadline = Date.now() + timeout;
    let last;
    while (Date.now() < deadline) {
      last = await probe();
      if (last) return last;
      await page.waitForTimeout(50);
    }
    throw new Error(`waited ${timeout / 1000} s for ${what}; status ${await status()}; page says: ${await panel.innerText()}`);
  };
  const cell = (at) => panel.locator(".jp-CodeCell").nth(at);
  const prompt = (at) => cell(at).locator(".jp-InputPrompt").first().innerText();
  const output = async (at) => (await cell(at).locator(".jp-OutputArea-output").allInnerTexts()).join("");
  const done = (at) => until(async () => !(await prompt(at)).includes("*"), `the prompt of cell ${at} to lose its star`);
  // JupyterLab may still move the focus about while it starts: until the cell runs, ask for it once more.
  const run = async (at, text) => {
    await until(async () => {
      if (/\[[\d*]+\]/.test(await prompt(at))) return true;
      await cell(at).locator(".cm-content").click();
      await page.keyboard.press("Shift+Enter");
      await page.waitForTimeout(1000);
      return false;
    }, `cell ${at} to run`);
    await until(async () => (await output(at)).includes(text), `${JSON.stringify(text)} in the output of cell ${at}`);
  };
  await cell(0).waitFor();
  const result = { seen };
  if (step === "start") {
    await until(async () => connected && (await status()) === "idle", "a kernel");
    result.opened = await status();
    await run(0, argument);
    result.during = await status();
    result.output = await output(0);
  } else {
    await until(async () => connected && (await status()) === "busy", "a busy kernel");
    // What JupyterLab asks of a kernel that it has just come to is answered by then, and each answer ends with an idle.
    await page.waitForTimeout(3000);
    result.opened = await status();
    await run(2, "running for");
    await done(2);
    result.beside = await status();
    console.log("the second cell is next");
    await run(1, argument);
    await until(async () => (await status()) === "idle", "an idle kernel after the attach");
    result.after = await status();
    await done(1);
    result.output = await output(1);
  }
  console.log(JSON.stringify(result));
} finally {
  await browser.close();
}
