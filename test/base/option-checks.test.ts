import { describe, expect, it } from 'vitest';
import {
  isObject,
  requireArray,
  requireBytes,
  requireInteger,
  requireKind,
  requireKnownFields,
  requireOneOf,
  requireText,
} from '../../src/base/option-checks.ts';

const bare = Object.create(null) as object;
class Options {
  readonly memory = 1;
}
class Named extends Options {
  get [Symbol.toStringTag](): string {
    return 'Options';
  }
}
const module = Object.defineProperty({ memory: 1 }, Symbol.toStringTag, { value: 'Module' });

describe('an object of options', () => {
  it.each([{}, { memory: 1 }, bare, new Options(), new Named(), module])('%o is one', (object) => {
    expect(isObject(object)).toBe(true);
    expect(() => requireKnownFields('host', object, { memory: true })).not.toThrow();
  });

  it.each<[got: unknown, text: string]>([
    [undefined, 'undefined'],
    [null, 'null'],
    [5, '5'],
    ['x', 'x'],
    [Symbol('s'), 'Symbol(s)'],
    [[], 'an array'],
    [new Date(0), 'a Date'],
    [new Map([['memory', 5]]), 'a Map'],
    [Promise.resolve({ memory: 5 }), 'a Promise'],
    [new ArrayBuffer(2), 'a ArrayBuffer'],
    [new Uint8Array(2), 'a Uint8Array'],
    [() => 7, 'a function'],
  ])('%s is none', (got, text) => {
    expect(isObject(got)).toBe(false);
    const refusal = new RangeError(`host: got ${text}, want an object`);
    expect(() => requireKnownFields('host', got, { memory: true })).toThrow(refusal);
  });
});

describe('what an option got', () => {
  it.each<[check: (got: unknown) => void]>([
    [(got) => requireOneOf('x', got, ['y'])],
    [(got) => requireKind('x', got, () => false, 'y')],
    [(got) => requireInteger('x', got, 0)],
    [(got) => requireText('x', got)],
    [(got) => requireBytes('x', got)],
    [(got) => requireArray('x', got, 'y')],
  ])('has a text, whatever it is: %s', (check) => {
    for (const got of [bare, Symbol('s'), { toString: 5 }, null]) {
      expect(() => check(got)).toThrow(RangeError);
      expect(() => check(got)).toThrow(/^x: got \S.*, want /);
    }
  });

  it('is a string where a text is wanted', () => {
    expect(() => requireText('name', '')).not.toThrow();
    expect(() => requireText('name', 5)).toThrow(new RangeError('name: got 5, want a string'));
    expect(() => requireText('name', undefined)).toThrow('name: got undefined, want a string');
  });
});
