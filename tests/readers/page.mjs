// Opens a page in headless Chromium as an auditor would: on a phone, on a
// desk in light and dark, and on paper. Prints what is wrong, a line each.
import { createRequire } from 'node:module';
import { statSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const require = createRequire(process.env.STRONGROOM_NODE_MODULES + '/');
const puppeteer = require('puppeteer-core');
const [page_file, pdf_file] = process.argv.slice(2);

const wrong = [];
const browser = await puppeteer.launch({
  executablePath: process.env.STRONGROOM_CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});
const page = await browser.newPage();
page.on('console', (message) => wrong.push(`console: ${message.text()}`));
page.on('pageerror', (error) => wrong.push(`error: ${error.message}`));
page.on('request', (request) => {
  if (request.url() !== pathToFileURL(page_file).href) wrong.push(`fetches ${request.url()}`);
});

// What a reader could not read: text that leaves the page, is too small, or
// has too little contrast (WCAG 2.2, 1.4.3: 4.5 to 1).
const look = () => page.evaluate(() => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) {
    found.push(`is ${root.scrollWidth} wide in a view of ${root.clientWidth}`);
  }
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((c) => {
      const s = c / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] !== 0 && colour !== 'transparent') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const words = node.textContent.trim();
    if (!words || element.closest('style') || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const svg = element.closest('svg');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 9) found.push(`"${words.slice(0, 30)}" is ${size} px high`);
    const [a, b] = [luminance(svg ? style.fill : style.color), luminance(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`"${words.slice(0, 30)}" has a contrast of ${contrast.toFixed(1)}`);
    const box = element.getBoundingClientRect();
    if (box.right > root.clientWidth + 1) found.push(`"${words.slice(0, 30)}" leaves the page`);
  }
  return found;
});

await page.goto(pathToFileURL(page_file).href);
const views = [
  ['phone', 360, 740, 'screen', 'light'],
  ['phone in the dark', 360, 740, 'screen', 'dark'],
  ['desk', 1280, 900, 'screen', 'light'],
  ['desk in the dark', 1280, 900, 'screen', 'dark'],
  // A4 between margins of 1 cm at 96 dots an inch.
  ['paper', 718, 1000, 'print', 'dark'],
];
for (const [name, width, height, media, scheme] of views) {
  await page.setViewport({ width, height, isMobile: name.startsWith('phone') });
  await page.emulateMediaType(media);
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  for (const fault of await look()) wrong.push(`${name}: ${fault}`);
}
const shown = await page.evaluate(() => document.body.innerText.length);
if (shown < 500) wrong.push(`shows ${shown} characters`);
await page.pdf({ path: pdf_file, format: 'A4' });
if (statSync(pdf_file).size < 5000) wrong.push('prints nothing');
await browser.close();
for (const line of new Set(wrong)) console.log(line);
