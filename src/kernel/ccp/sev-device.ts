/**
 * /dev/sev (Linux drivers/crypto/ccp/sev-dev.c, sev_ioctl; reference facts 6.2): a file whose holders may have KVM ask firmware for them, and its ioctl, SEV_ISSUE_CMD. Each
 * command's checks stand in Linux's order.
 *
 * SEV without SNP is never initialised here: what its firmware lacks is EIO, with its status in `error`.
 */
import { SEV_GET_ID2, SEV_ISSUE_CMD, sevUserVlekLoad } from '../../abi/sev-device.ts';
import {
  SEV_CMD,
  sevGetId,
  sevPlatformStatus,
  snpAddress,
  snpCommit,
  snpConfig,
  snpPlatformStatus,
  snpVlekLoad,
  snpWrappedVlek,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { ERRNO, LinuxError } from '../../base/errors.ts';
import { type FileOperations, type FileTable, OpenFile } from '../files.ts';
import type { SevIssueCommand } from '../interface.ts';
import { commandFailure, type Psp, type StatusReport } from './psp.ts';

type Access = 'read' | 'write';

class SevFile implements FileOperations {
  readonly name = '/dev/sev';
}

/** open("/dev/sev"). Returns the descriptor. Errors: ENODEV (there is no secure processor), EMFILE. */
export function openSevDevice(files: FileTable, psp: Psp | undefined, access: Access = 'write'): number {
  if (psp === undefined) throw new LinuxError('ENODEV', '/dev/sev: this machine has no secure processor');
  files.reserve();
  return files.install(new OpenFile(new SevFile(), { readable: true, writable: access === 'write' }));
}

/** Whether the descriptor is one of /dev/sev. */
export function isSevDevice(files: FileTable, fd: number): boolean {
  try {
    return files.get(fd).operations instanceof SevFile;
  } catch (error) {
    if (error instanceof LinuxError) return false;
    throw error;
  }
}

/** Commands of SEV without SNP that change the platform: for who may write. By the mailbox's numbers. */
const PLATFORM_COMMANDS: ReadonlyMap<number, number> = new Map([
  [SEV_ISSUE_CMD.FACTORY_RESET, SEV_CMD.PLATFORM_RESET],
  [SEV_ISSUE_CMD.PEK_GEN, SEV_CMD.PEK_GEN],
  [SEV_ISSUE_CMD.PEK_CSR, SEV_CMD.PEK_CSR],
  [SEV_ISSUE_CMD.PDH_GEN, SEV_CMD.PDH_GEN],
  [SEV_ISSUE_CMD.PDH_CERT_EXPORT, SEV_CMD.PDH_CERT_EXPORT],
  [SEV_ISSUE_CMD.PEK_CERT_IMPORT, SEV_CMD.PEK_CERT_IMPORT],
]);

/** SEV_ISSUE_CMD. Errors: ENODEV (the driver is gone), EINVAL, EPERM, EFAULT (`data` is too short), EIO, and those of Psp. */
export function sevIssueCommand(psp: Psp, command: SevIssueCommand, access: Access): void {
  const { cmd } = command;
  if (!psp.initialised) throw new LinuxError('ENODEV', `SEV_ISSUE_CMD ${cmd}: there is no secure processor`);
  const platform = PLATFORM_COMMANDS.get(cmd);
  if (platform !== undefined) {
    requireWrite(command, access);
    finish(command, psp.command(platform, undefined, command));
    return;
  }
  const handler = HANDLERS.get(cmd);
  if (handler === undefined) throw new LinuxError('EINVAL', `SEV_ISSUE_CMD ${cmd}: commands are 0 to 12`);
  handler(psp, command, access);
}

type Handler = (psp: Psp, command: SevIssueCommand, access: Access) => void;
const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [SEV_ISSUE_CMD.PLATFORM_STATUS, platformStatus],
  [SEV_ISSUE_CMD.GET_ID, getId],
  [SEV_ISSUE_CMD.GET_ID2, getId2],
  [SEV_ISSUE_CMD.SNP_PLATFORM_STATUS, snpStatus],
  [SEV_ISSUE_CMD.SNP_COMMIT, commit],
  [SEV_ISSUE_CMD.SNP_SET_CONFIG, setConfig],
  [SEV_ISSUE_CMD.SNP_VLEK_LOAD, vlekLoad],
]);

function commit(psp: Psp, command: SevIssueCommand): void {
  finish(command, psp.command(SEV_CMD.SNP_COMMIT, snpCommit.encode({ length: snpCommit.size }), command));
}

/** Errors: EIO, and those of Psp. */
function finish(command: SevIssueCommand, status: number): void {
  if (status !== SEV_STATUS.SUCCESS) throw commandFailure(`SEV_ISSUE_CMD ${command.cmd}`, status);
}

function requireWrite({ cmd }: SevIssueCommand, access: Access): void {
  if (access !== 'write')
    throw new LinuxError('EPERM', `SEV_ISSUE_CMD ${cmd}: /dev/sev is not open for writing`);
}

function requireData(command: SevIssueCommand): Uint8Array {
  if (command.data === undefined) throw new LinuxError('EINVAL', `SEV_ISSUE_CMD ${command.cmd}: no data`);
  return command.data;
}

/** The struct that the caller gave, `size` bytes of it. Errors: EFAULT. */
function userStruct(command: SevIssueCommand, size: number): Uint8Array {
  const { data } = command;
  if (data === undefined || data.length < size)
    throw new LinuxError('EFAULT', `SEV_ISSUE_CMD ${command.cmd}: ${data?.length ?? 0} bytes, want ${size}`);
  return data.subarray(0, size);
}

function platformStatus(psp: Psp, command: SevIssueCommand): void {
  const status = new Uint8Array(sevPlatformStatus.size);
  finish(command, psp.exchange(SEV_CMD.PLATFORM_STATUS, status, command));
  userStruct(command, status.length).set(status);
}

const ID_BYTES = 64;
const SOCKETS_MAX = 2;

/** The deprecated form: room for two sockets. */
function getId(psp: Psp, command: SevIssueCommand): void {
  const ids = new Uint8Array(SOCKETS_MAX * ID_BYTES);
  const { status } = askId(psp, ids, command);
  finish(command, status);
  userStruct(command, ids.length).set(ids);
}

function getId2(psp: Psp, command: SevIssueCommand): void {
  const data = userStruct(command, SEV_GET_ID2.SIZE);
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const address = view.getBigUint64(SEV_GET_ID2.ADDRESS, true);
  const length = view.getUint32(SEV_GET_ID2.LENGTH, true);
  const { blob } = command;
  const ids = new Uint8Array(address === 0n ? 0 : Math.min(length, SOCKETS_MAX * ID_BYTES));
  const { status, needed } = askId(psp, ids, command);
  view.setUint32(SEV_GET_ID2.LENGTH, needed, true);
  if (status === SEV_STATUS.SUCCESS) {
    if (blob === undefined || blob.length < needed)
      throw new LinuxError('EFAULT', `SEV_GET_ID2: ${blob?.length ?? 0} bytes at address, want ${needed}`);
    blob.set(ids.subarray(0, needed));
  }
  finish(command, status);
}

/** SEV GET_ID into `ids`, and how many bytes there are. */
function askId(psp: Psp, ids: Uint8Array, report: StatusReport): { status: number; needed: number } {
  const page = psp.allocatePage();
  if (page < 0) return { status: -ERRNO.ENOMEM, needed: 0 };
  const buffer = sevGetId.encode({ address: BigInt(page) * 4096n, length: ids.length });
  const status = psp.exchange(SEV_CMD.GET_ID, buffer, report);
  const taken = psp.takePage(page, ids);
  return { status: taken || status < 0 ? status : -ERRNO.EFAULT, needed: sevGetId.decode(buffer).length };
}

function snpStatus(psp: Psp, command: SevIssueCommand): void {
  requireData(command);
  const status = new Uint8Array(snpPlatformStatus.size);
  finish(
    command,
    psp.ask(SEV_CMD.SNP_PLATFORM_STATUS, status, (address) => snpAddress.encode({ address }), command),
  );
  userStruct(command, status.length).set(status);
}

function setConfig(psp: Psp, command: SevIssueCommand, access: Access): void {
  requireData(command);
  requireWrite(command, access);
  finish(command, psp.command(SEV_CMD.SNP_CONFIG, userStruct(command, snpConfig.size), command));
}

function vlekLoad(psp: Psp, command: SevIssueCommand, access: Access): void {
  requireData(command);
  requireWrite(command, access);
  const request = sevUserVlekLoad.decode(userStruct(command, sevUserVlekLoad.size));
  if (request.length !== sevUserVlekLoad.size || request.wrappedVersion !== 0)
    throw new LinuxError(
      'EINVAL',
      `SNP_VLEK_LOAD: len ${request.length}, version ${request.wrappedVersion}, want 16 and 0`,
    );
  const { blob } = command;
  if (blob === undefined || blob.length < snpWrappedVlek.size)
    throw new LinuxError(
      'EFAULT',
      `SNP_VLEK_LOAD: ${blob?.length ?? 0} bytes at address, want ${snpWrappedVlek.size}`,
    );
  const reserved = Uint8Array.of(request.reserved0, request.reserved1, request.reserved2);
  const load = (address: bigint): Uint8Array =>
    snpVlekLoad.encode({ length: snpVlekLoad.size, wrappedVersion: 0, reserved, address });
  const status = psp.tell(SEV_CMD.SNP_VLEK_LOAD, blob.subarray(0, snpWrappedVlek.size), load, command);
  finish(command, status);
}
