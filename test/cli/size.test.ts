import { describe, expect, it } from 'vitest';
import {
  InputError,
  parseChoice,
  parseInteger,
  parseNumber,
  parseSize,
  parseWord,
} from '../../src/cli/size.ts';

describe('sizes on the command line', () => {
  it.each([
    ['0', 0],
    ['4096', 4096],
    ['512K', 524288],
    ['64M', 67108864],
    ['1g', 1073741824],
  ])('%s is %i bytes', (text, bytes) => {
    expect(parseSize(text, '--memory')).toBe(bytes);
  });

  it.each(['', 'M', '-1', '1.5G', '64MB', '0x10', ' 1', '9007199254740993', '9999999999G'])(
    '%j is refused',
    (text) => {
      expect(() => parseSize(text, '--memory')).toThrow(InputError);
    },
  );

  it('are refused with the option, what it got and what it wants', () => {
    expect(() => parseSize('lots', '--memory')).toThrow(
      '--memory: got lots, want a size such as 4096, 512K, 64M or 1G',
    );
  });
});

describe('numbers and choices', () => {
  it('must lie in their range', () => {
    expect(parseInteger('8', '--smp', 1, 8)).toBe(8);
    expect(() => parseInteger('9', '--smp', 1, 8)).toThrow('--smp: got 9, want a number from 1 to 8');
    expect(() => parseInteger('1.5', '--smp', 1, 8)).toThrow('--smp: got 1.5, want a whole number');
    expect(() => parseInteger('two', '--smp', 1, 8)).toThrow(InputError);
    expect(parseNumber('0.25', '--timeout', 0.001, 10)).toBe(0.25);
    expect(() => parseNumber('-1', '--timeout', 0.001, 10)).toThrow(InputError);
  });

  it('a word is taken in capitals too, and shown as it was typed', () => {
    expect(parseWord('vlek', '--signing-key', ['VCEK', 'VLEK'])).toBe('VLEK');
    expect(parseWord('QEMU', '--vmm-type', ['qemu', 'ec2'])).toBe('qemu');
    const refusal = new InputError('--signing-key: got Vcel, want VCEK or VLEK');
    expect(() => parseWord('Vcel', '--signing-key', ['VCEK', 'VLEK'])).toThrow(refusal);
  });

  it('that are missing are shown as missing', () => {
    expect(() => parseSize('', '--memory')).toThrow('--memory: got "", want a size');
    expect(() => parseNumber('', '--timeout', 0, 5)).toThrow('--timeout: got "", want a number from 0 to 5');
    expect(() => parseInteger('', '--smp', 0, 5)).toThrow('--smp: got "", want a number from 0 to 5');
    expect(() => parseWord('', '--answer', ['404'])).toThrow('--answer: got "", want 404');
  });

  it('a choice is one of those offered', () => {
    expect(parseChoice('6.12', '--kernel', ['7.2', '6.12'])).toBe('6.12');
    expect(() => parseChoice('5.10', '--kernel', ['7.2', '6.12'])).toThrow(
      expect.objectContaining({ name: 'InputError', message: '--kernel: got 5.10, want 7.2 or 6.12' }),
    );
  });
});
