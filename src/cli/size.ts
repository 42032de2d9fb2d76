/** Sizes, numbers and words as they stand on a command line. */
import { requireOneOf, textOf } from '../base/option-checks.ts';

/** What the user typed is wrong: exit status 2. */
export class InputError extends Error {
  override readonly name = 'InputError';
}

const UNITS: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/** `64M` in bytes; K, M and G are powers of 1024. Throws InputError. */
export function parseSize(text: string, option: string): number {
  const match = /^(\d+)([KMG]?)$/i.exec(text);
  const bytes = match === null ? Number.NaN : Number(match[1]) * UNITS[match[2]!.toUpperCase()]!;
  if (!Number.isSafeInteger(bytes))
    throw new InputError(`${option}: got ${textOf(text)}, want a size such as 4096, 512K, 64M or 1G`);
  return bytes;
}

/** A decimal number within [least, most]. Throws InputError. */
export function parseNumber(text: string, option: string, least: number, most: number): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= least && value <= most)) {
    throw new InputError(`${option}: got ${textOf(text)}, want a number from ${least} to ${most}`);
  }
  return value;
}

export function parseInteger(text: string, option: string, least: number, most: number): number {
  const value = parseNumber(text, option, least, most);
  if (!Number.isInteger(value)) throw new InputError(`${option}: got ${textOf(text)}, want a whole number`);
  return value;
}

/** One of `choices`. Throws InputError. */
export function parseChoice<Choice extends string>(
  text: string,
  option: string,
  choices: readonly Choice[],
): Choice {
  try {
    requireOneOf(option, text, choices);
    return text;
  } catch (error) {
    throw new InputError((error as RangeError).message);
  }
}

/** One of `choices`, in capitals or not. Throws InputError. */
export function parseWord<Choice extends string>(
  text: string,
  option: string,
  choices: readonly Choice[],
): Choice {
  const word = choices.find((choice) => choice.toLowerCase() === text.toLowerCase());
  return word ?? parseChoice(text, option, choices);
}
