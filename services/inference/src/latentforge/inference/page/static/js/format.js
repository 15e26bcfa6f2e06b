// Numbers and texts as people read them.

const WHITE = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };

const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;

/** A token so that its blanks are seen, many of them as a number; one that is no whole character as its bytes. */
export function visible(text) {
  const bytes = BYTES.exec(text);
  if (bytes) return `⟨${bytes[1].replaceAll("\\x", " ").trim()}⟩`;
  const signs = text.replace(/[ \n\t\r]/g, (blank) => WHITE[blank]);
  return signs.replace(/([␣↵⇥])\1{2,}/g, (run, sign) => `${sign}×${run.length}`) || "∅";
}

export function percent(probability) {
  const value = 100 * probability;
  if (value >= 99.95) return "100 %";
  if (value >= 10) return `${value.toFixed(0)} %`;
  if (value >= 0.1) return `${value.toFixed(1)} %`;
  return value >= 0.001 ? `${value.toFixed(3)} %` : "< 0.001 %";
}

export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  return Math.abs(value) >= 0.01 ? value.toFixed(3) : value.toPrecision(3);
}

export function rounded(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A moment in the reader's own time zone. */
export function moment(iso) {
  if (!iso) return "–";
  const date = new Date(iso);
  return Number.isNaN(date.valueOf()) ? iso : date.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
}

export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
