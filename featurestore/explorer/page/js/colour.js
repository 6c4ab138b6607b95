// Colour scales that the colour-blind can read: lightness always rises or falls along them.
const STOPS = {
  light: ["#ffffff", "#fde9c0", "#f9b978", "#e8715a", "#a8327d", "#43195e"],
  dark: ["#1b1d1f", "#3f1a5e", "#8c2981", "#de4968", "#fe9f6d", "#fcf3bf"],
  lightBelow: ["#ffffff", "#cfe3ef", "#8dbbd9", "#3f7fb0", "#174a7a"],
  darkBelow: ["#1b1d1f", "#163a56", "#1f648f", "#4c9fd0", "#b5dcf3"],
};
const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function table(stops) {
  const colours = stops.map(parse);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (colours.length - 1);
    const low = Math.min(colours.length - 2, Math.floor(at));
    return colours[low].map((c, k) => Math.round(c + (at - low) * (colours[low + 1][k] - c)));
  });
}
const TABLES = Object.fromEntries(Object.entries(STOPS).map(([name, stops]) => [name, table(stops)]));

// A number from −1 to 1 → [r, g, b]; 0 is the panel's own colour.
export function shade(part, dark) {
  const name = (dark ? "dark" : "light") + (part < 0 ? "Below" : "");
  return TABLES[name][Math.min(255, Math.round(Math.abs(part) * 255))];
}

// For a map over a picture: transparent where nothing fires.
export function glow(part) {
  const [r, g, b] = TABLES.dark[Math.min(255, Math.round(80 + part * 175))];
  return [r, g, b, Math.round(255 * Math.min(0.88, 0.14 + 0.8 * part))];
}

export const css = ([r, g, b, a = 255]) => `rgb(${r} ${g} ${b} / ${(a / 255).toFixed(2)})`;
