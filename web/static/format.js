// Formats numbers for the page's texts: sizes, counts, perplexities, errors and durations.

const UNITS = ['bytes', 'kB', 'MB', 'GB', 'TB'];

/** 4518968 → "4.52 MB". Three significant digits above a kilobyte. */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toPrecision(3)} ${UNITS[unit]}`;
}

/** 2301440 → "2.3 million". */
export function count(number) {
  if (number >= 1e9) return `${significant(number / 1e9)} billion`;
  if (number >= 1e6) return `${significant(number / 1e6)} million`;
  return whole(number);
}

/** 8192 → "8,192". */
export function whole(number) {
  return new Intl.NumberFormat('en').format(Math.round(number));
}

/** Three significant digits, without trailing zeros. */
export function significant(number) {
  return String(Number(number.toPrecision(3)));
}

/** A perplexity: two decimals below 1000, else a whole number. */
export function perplexity(value) {
  if (!Number.isFinite(value)) return '–';
  return value < 1000 ? value.toFixed(2) : whole(value);
}

/** An error or α in a table cell. Null becomes a dash. */
export function decimal(value) {
  if (value === null || value === undefined) return '–';
  if (value === 0) return '0';
  return Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toFixed(4);
}

/** The relative change in percent: "+3.1 %". */
export function change(from, to) {
  const percent = (to / from - 1) * 100;
  if (!Number.isFinite(percent)) return '–';
  const sign = percent < 0 ? '−' : '+';
  return `${sign}${Math.abs(percent).toFixed(Math.abs(percent) < 100 ? 1 : 0)} %`;
}

/** 95 → "1 min 35 s". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
}

/** A coarse estimate of a duration: "about 2 min". */
export function about(seconds) {
  if (seconds < 10) return 'a few seconds';
  if (seconds < 60) return `about ${Math.round(seconds / 10) * 10} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${significant(Math.round(seconds / 360) / 10)} h`;
}
