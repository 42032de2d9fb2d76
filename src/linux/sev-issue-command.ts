/**
 * SEV_ISSUE_CMD's argument for the real /dev/sev (Linux include/uapi/linux/psp-sev.h): what our interface gives as bytes becomes addresses. Where `data` itself has the address of
 * more bytes (`blob`), that is filled in; an address of 0 stays, since it asks how long they are.
 *
 * Left out: PDH_CERT_EXPORT and PEK_CERT_IMPORT, which take two such addresses.
 */
import { u32 } from '../abi/layout.ts';
import { SEV_GET_ID2, SEV_ISSUE, SEV_ISSUE_CMD, sevUserVlekLoad } from '../abi/sev-device.ts';
import { LinuxError, NotImplementedError } from '../base/errors.ts';
import type { SevIssueCommand } from '../kernel/interface.ts';

/** Where the address of `blob` lies in `data`. PEK_CSR's struct is GET_ID2's. */
const BLOB_ADDRESS: ReadonlyMap<number, number> = new Map([
  [SEV_ISSUE_CMD.PEK_CSR, SEV_GET_ID2.ADDRESS],
  [SEV_ISSUE_CMD.GET_ID2, SEV_GET_ID2.ADDRESS],
  [SEV_ISSUE_CMD.SNP_VLEK_LOAD, sevUserVlekLoad.offsets.address],
]);
/** Bytes that the kernel reads or writes at `data`, where it does not look at a length of the caller's. */
const DATA_BYTES: ReadonlyMap<number, number> = new Map([
  [SEV_ISSUE_CMD.PLATFORM_STATUS, 12],
  [SEV_ISSUE_CMD.PEK_CSR, 12],
  [SEV_ISSUE_CMD.GET_ID, 128],
  [SEV_ISSUE_CMD.GET_ID2, 12],
  [SEV_ISSUE_CMD.SNP_PLATFORM_STATUS, 32],
  [SEV_ISSUE_CMD.SNP_SET_CONFIG, 64],
  [SEV_ISSUE_CMD.SNP_VLEK_LOAD, 16],
]);
const WRAPPED_VLEK_BYTES = 432;

/** The call's argument, and what lies at its addresses: to be kept until `finish`. */
export interface SevIssueArgument {
  readonly bytes: Uint8Array;
  /** After the ioctl, also where it failed: gives the caller what the kernel wrote. */
  finish(): void;
}

/** Errors: EFAULT, where the kernel would go beyond the bytes that it is given. NotImplementedError. */
export function sevIssueArgument(
  command: SevIssueCommand,
  addressOf: (bytes: Uint8Array) => bigint,
): SevIssueArgument {
  const { cmd, data, blob } = command;
  u32.check(cmd, 'sev_issue_cmd.cmd');
  if (cmd === SEV_ISSUE_CMD.PDH_CERT_EXPORT || cmd === SEV_ISSUE_CMD.PEK_CERT_IMPORT)
    throw new NotImplementedError(`SEV_ISSUE_CMD ${cmd} on the real kernel: two buffers`);
  const bytes = new Uint8Array(SEV_ISSUE.SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint32(SEV_ISSUE.CMD, cmd, true);
  const passed = data?.slice();
  if (passed !== undefined) {
    requireBytes(cmd, 'data', passed, DATA_BYTES.get(cmd) ?? 0);
    setBlobAddress(cmd, passed, blob, addressOf);
    view.setBigUint64(SEV_ISSUE.DATA, addressOf(passed), true);
  }
  return {
    bytes,
    finish: () => {
      command.error = view.getUint32(SEV_ISSUE.ERROR, true);
      const at = BLOB_ADDRESS.get(cmd);
      // The caller's own idea of an address stays.
      if (at !== undefined) passed?.set(data!.subarray(at, at + 8), at);
      if (passed !== undefined) data!.set(passed);
    },
  };
}

function setBlobAddress(
  cmd: number,
  data: Uint8Array,
  blob: Uint8Array | undefined,
  addressOf: (bytes: Uint8Array) => bigint,
): void {
  const at = BLOB_ADDRESS.get(cmd);
  if (at === undefined) return;
  const view = new DataView(data.buffer);
  if (view.getBigUint64(at, true) === 0n && blob === undefined) return;
  const length =
    cmd === SEV_ISSUE_CMD.SNP_VLEK_LOAD ? WRAPPED_VLEK_BYTES : view.getUint32(SEV_GET_ID2.LENGTH, true);
  requireBytes(cmd, 'blob', blob ?? new Uint8Array(0), length);
  if (blob !== undefined) view.setBigUint64(at, addressOf(blob), true);
}

function requireBytes(cmd: number, what: string, bytes: Uint8Array, want: number): void {
  if (bytes.length < want)
    throw new LinuxError('EFAULT', `SEV_ISSUE_CMD ${cmd}: ${what} has ${bytes.length} bytes, want ${want}`);
}
