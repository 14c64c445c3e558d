// A real JupyterLab page in the system's chromium: what a person sees and clicks.
//
//   node lab.mjs URL TOKEN NOTEBOOK STEP [ARGUMENT]
//
// STEP `start`: opens NOTEBOOK, runs its first cell, waits until its output contains ARGUMENT; says what the
// kernel's status showed. STEP `attach`: opens NOTEBOOK, runs its second cell until its output contains ARGUMENT and
// the kernel is idle again. Prints one JSON object.
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
  const cells = panel.locator(".jp-CodeCell");
  const cell = cells.nth(step === "start" ? 0 : 1);
  await cell.waitFor();
  const ready = step === "start" ? ["idle"] : ["idle", "busy"];
  await until(async () => connected && ready.includes(await status()), "a kernel");
  const opened = await status();
  const prompt = () => cell.locator(".jp-InputPrompt").first().innerText();
  // JupyterLab may still move the focus about while it starts: until the cell runs, ask for it once more.
  await until(async () => {
    if (/\[[\d*]+\]/.test(await prompt())) return true;
    await cell.locator(".cm-content").click();
    await page.keyboard.press("Shift+Enter");
    await page.waitForTimeout(1000);
    return false;
  }, "the cell to run");
  const output = () => cell.locator(".jp-OutputArea-output").allInnerTexts().then((texts) => texts.join(""));
  await until(async () => (await output()).includes(argument), `${JSON.stringify(argument)} in the output`);
  const result = { opened, during: await status() };
  if (step === "attach") {
    await until(async () => (await status()) === "idle", "an idle kernel after the attach");
    result.after = await status();
    await until(async () => !(await prompt()).includes("*"), "the cell's prompt to lose its star");
  }
  console.log(JSON.stringify({ ...result, output: await output(), prompt: await prompt(), seen }));
} finally {
  await browser.close();
}
