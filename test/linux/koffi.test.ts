import { describe, expect, it } from 'vitest';
import { loadKoffi, RealKernelUnavailable } from '../../src/linux/koffi.ts';

const linux = { platform: 'linux', arch: 'x64' };
const absent = (): never => {
  throw new Error("Cannot find module 'koffi'\nRequire stack: ...");
};

describe('the FFI library', () => {
  it('is asked for by name when it is absent', () => {
    expect(() => loadKoffi(absent, linux)).toThrow(RealKernelUnavailable);
    expect(() => loadKoffi(absent, linux)).toThrow(
      "the real kernel needs the package koffi, an optional dependency that is not installed here: npm install koffi@3.3.4 (Cannot find module 'koffi')",
    );
  });

  it.each([
    ['darwin', 'arm64', 'the real kernel: got darwin on arm64, want linux on x64'],
    ['linux', 'arm64', 'the real kernel: got linux on arm64, want linux on x64'],
  ])('is not tried on %s %s', (platform, arch, message) => {
    expect(() => loadKoffi(absent, { platform, arch })).toThrow(message);
  });

  it('is loaded once', () => {
    let times = 0;
    const module = { load: () => ({ func: () => () => 0 }), errno: () => 0 };
    const require = () => {
      times++;
      return module;
    };
    expect(loadKoffi(require, linux)).toBe(module);
    expect(loadKoffi(require, linux)).toBe(module);
    expect(times).toBe(1);
  });
});
