/** The argument of SEV_ISSUE_CMD as the real kernel takes it: packed, with addresses for bytes. */
import { describe, expect, it } from 'vitest';
import { sevIssueArgument } from '../../src/linux/sev-issue-command.ts';

/** Addresses are made up: 0x1000 for the first bytes that are asked for, 0x2000 for the second. */
function argumentOf(command: Parameters<typeof sevIssueArgument>[0]) {
  const placed: Uint8Array[] = [];
  const argument = sevIssueArgument(command, (bytes) => BigInt(placed.push(bytes) * 0x1000));
  const view = new DataView(argument.bytes.buffer);
  return { argument, view, placed };
}

describe('SEV_ISSUE_CMD on the real kernel', () => {
  it('has cmd, the address of a copy of data, and error, in 16 bytes', () => {
    const data = new Uint8Array(32);
    const command = { cmd: 9, data, error: 77 };
    const { argument, view, placed } = argumentOf(command);
    expect([...argument.bytes]).toEqual([9, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    placed[0]!.fill(5);
    view.setUint32(12, 0x16, true);
    expect(data[0]).toBe(0);
    argument.finish();
    expect(data).toEqual(new Uint8Array(32).fill(5));
    expect(command.error).toBe(0x16);
  });

  it('has no address where there is no data', () => {
    expect([...argumentOf({ cmd: 10 }).argument.bytes]).toEqual([10, ...new Array(15).fill(0)]);
  });

  it('fills in where the blob of SNP_VLEK_LOAD lies, for the kernel alone', () => {
    const data = new Uint8Array(16);
    data[0] = 16;
    data[8] = 0xee;
    const blob = new Uint8Array(432);
    const { argument, placed, view } = argumentOf({ cmd: 12, data, blob });
    expect(placed[0]).toBe(blob);
    expect([...placed[1]!]).toEqual([16, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    expect(view.getBigUint64(4, true)).toBe(0x2000n);
    argument.finish();
    expect(data[8]).toBe(0xee);
  });

  it('lets GET_ID2 ask for the length with an address of 0, and brings it back', () => {
    const data = new Uint8Array(12);
    const { argument, placed } = argumentOf({ cmd: 8, data });
    expect([...placed[0]!.subarray(0, 8)]).toEqual(new Array(8).fill(0));
    placed[0]![8] = 64;
    argument.finish();
    expect([...data]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0]);
  });

  // Command, bytes of data, length that the data say, bytes of blob.
  it.each([
    ['PLATFORM_STATUS', 1, 11, 0, undefined],
    ['GET_ID', 7, 127, 0, undefined],
    ['SNP_PLATFORM_STATUS', 9, 31, 0, undefined],
    ['SNP_SET_CONFIG', 11, 63, 0, undefined],
    ['SNP_VLEK_LOAD', 12, 15, 0, 432],
    ['SNP_VLEK_LOAD, blob', 12, 16, 0, 431],
    ['GET_ID2, blob', 8, 12, 128, 127],
    ['PEK_CSR, blob', 3, 12, 2084, 2083],
  ] as const)('is EFAULT where the kernel would go beyond the bytes: %s', (_, cmd, bytes, length, blob) => {
    const data = new Uint8Array(bytes);
    if (length > 0) data[0] = 1;
    if (length > 0) new DataView(data.buffer).setUint32(8, length, true);
    const command = { cmd, data, ...(blob !== undefined && { blob: new Uint8Array(blob) }) };
    expect(() => argumentOf(command)).toThrow('EFAULT');
  });

  it('refuses by name what takes two buffers', () => {
    for (const cmd of [5, 6])
      expect(() => argumentOf({ cmd, data: new Uint8Array(32) })).toThrow('two buffers');
  });
});
