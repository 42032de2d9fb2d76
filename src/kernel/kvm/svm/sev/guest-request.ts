/**
 * SNP guest requests: a message of the guest for firmware, carried by KVM (Linux arch/x86/kvm/svm/sev.c, snp_handle_guest_req, snp_handle_ext_guest_req; reference facts
 * 5.5 and 5.6; seed 001). An extended request for a report brings certificates along, which user space puts into the guest's memory: in the landed form by
 * KVM_EXIT_SNP_REQ_CERTS, in the early one by KVM_EXIT_VMGEXIT with its second exit when the report was made.
 */
import { GHCB, GHCB_ANSWER, GHCB_MALFORMED } from '../../../../abi/ghcb.ts';
import { KVM_EXIT_SNP_REQ_CERTS, KVM_EXIT_VMGEXIT } from '../../../../abi/kvm.ts';
import { SEV_CMD, snpGuestRequest } from '../../../../abi/sev-firmware.ts';
import { type Gpa, spaOf } from '../../../../base/address.ts';
import { ERRNO } from '../../../../base/errors.ts';
import { isSevDevice } from '../../../ccp/sev-device.ts';
import { readGuest, writeGuest } from '../../guest-access.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from '../../run-result.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const RBX = 3;
const PAGE = 4096;
const MSG_TYPE = 0x34;
const MSG_REPORT_REQ = 5;
const EMPTY_TABLE = new Uint8Array(24);
const VMM = { INVALID_LEN: 1n, BUSY: 2n, GENERIC: 0xffff_ffffn, EARLY_GENERIC: 1n << 31n } as const;
/** struct kvm_user_vmgexit of the early form. */
const VMGEXIT = { REQ_CERTS: 1, NOTIFY_DONE: 1, PENDING: 0, DONE: 1 } as const;

/** SW_EXITINFO2: the host's error above the firmware's. */
const outcome = (vmm: bigint, firmware: number): bigint => (vmm << 32n) | BigInt(firmware >>> 0);

/** Carries the message at `request` to firmware, and the answer to `response`. A run result. */
export function guestRequest(sev: VcpuSev, request: number, response: number): number {
  const status = callFirmware(sev, request, response);
  if (typeof status !== 'number') return status.run;
  return sev.answer(0, outcome(0n, status));
}

/** Firmware's status, or what KVM_RUN returns instead. */
function callFirmware(sev: VcpuSev, request: number, response: number): number | { run: number } {
  const vm = sev.sev;
  const { memory } = vm.vm;
  const page = vm.messageBytes;
  if (!readGuest(vm.vm, request as Gpa, page)) return { run: -ERRNO.EIO };
  if (!isSevDevice(vm.vm.process.files, vm.fd)) return { run: -ERRNO.EBADF };
  memory.write(spaOf(vm.requestPage), page);
  const status = vm.host.psp.command(
    SEV_CMD.SNP_GUEST_REQUEST,
    snpGuestRequest.encode({
      context: BigInt(spaOf(vm.context!)),
      request: BigInt(spaOf(vm.requestPage)),
      response: BigInt(spaOf(vm.responsePage)),
    }),
  );
  if (status < 0) return { run: status };
  memory.read(spaOf(vm.responsePage), page);
  return writeGuest(vm.vm, response as Gpa, page) ? status : { run: -ERRNO.EIO };
}

export function extendedGuestRequest(sev: VcpuSev, request: number, response: number): number {
  const { policy } = sev.sev.vm;
  if (policy.earlyCertificates) return earlyExtendedRequest(sev, request, response);
  const type = new Uint8Array(1);
  if (!readGuest(sev.sev.vm, (request + MSG_TYPE) as Gpa, type)) return -ERRNO.EIO;
  if (type[0] !== MSG_REPORT_REQ) return guestRequest(sev, request, response);
  const ghcb = sev.ghcb!;
  const { rax, rbx } = ghcb.request;
  if (!ghcb.request.has(GHCB.RAX) || !ghcb.request.has(GHCB.RBX) || rax % BigInt(PAGE) !== 0n)
    return sev.answer(GHCB_ANSWER.MALFORMED, GHCB_MALFORMED.INVALID_INPUT);
  if (!sev.sev.certsEnabled) {
    if (rbx !== 0n && !writeGuest(sev.sev.vm, Number(rax) as Gpa, EMPTY_TABLE)) return -ERRNO.EIO;
    return guestRequest(sev, request, response);
  }
  const { exits } = sev;
  sev.vcpu.kvmRun.exitReason = KVM_EXIT_SNP_REQ_CERTS;
  exits.reqCertsGpa = rax;
  exits.reqCertsNpages = rbx;
  exits.reqCertsRet = 0n;
  sev.awaitUserSpace(() => {
    switch (Number(exits.reqCertsRet)) {
      case 0:
        return guestRequest(sev, request, response);
      case ERRNO.ENOSPC:
        sev.vcpu.gpr[RBX] = exits.reqCertsNpages;
        return sev.answer(0, outcome(VMM.INVALID_LEN, 0));
      case ERRNO.EAGAIN:
        return sev.answer(0, outcome(VMM.BUSY, 0));
      case ERRNO.EIO:
        return sev.answer(0, outcome(VMM.GENERIC, 0));
      default:
        return -ERRNO.EINVAL;
    }
  });
  return TO_USER_SPACE;
}

/** Seed 001: every extended request asks, and user space may want to hear when it is done. */
function earlyExtendedRequest(sev: VcpuSev, request: number, response: number): number {
  const { exits, vcpu } = sev;
  const ghcb = sev.ghcb!;
  if (!ghcb.request.has(GHCB.RAX) || !ghcb.request.has(GHCB.RBX))
    return sev.answer(GHCB_ANSWER.MALFORMED, GHCB_MALFORMED.MISSING_INPUT);
  const { rax, rbx } = ghcb.request;
  if (rax % BigInt(PAGE) !== 0n) return sev.answer(0, outcome(VMM.EARLY_GENERIC, 0));
  const { kvmRun } = vcpu;
  kvmRun.exitReason = KVM_EXIT_VMGEXIT;
  exits.vmgexitType = VMGEXIT.REQ_CERTS;
  exits.vmgexitDataGpa = rax;
  exits.vmgexitDataNpages = rbx;
  exits.vmgexitRet = 0;
  exits.vmgexitFlags = 0;
  exits.vmgexitStatus = VMGEXIT.PENDING;
  sev.awaitUserSpace(() => {
    const notify = (exits.vmgexitFlags & VMGEXIT.NOTIFY_DONE) !== 0;
    finishEarlyRequest(sev, request, response);
    if (!notify) return GUEST_AGAIN;
    kvmRun.exitReason = KVM_EXIT_VMGEXIT;
    exits.vmgexitFlags = 0;
    exits.vmgexitStatus = VMGEXIT.DONE;
    sev.awaitUserSpace(() => GUEST_AGAIN);
    return TO_USER_SPACE;
  });
  return TO_USER_SPACE;
}

/** Tells the guest what the answer of user space comes to. */
function finishEarlyRequest(sev: VcpuSev, request: number, response: number): void {
  const { exits } = sev;
  const ret = exits.vmgexitRet >>> 0;
  if (ret !== 0) {
    if (BigInt(ret) === VMM.INVALID_LEN) sev.vcpu.gpr[RBX] = exits.vmgexitDataNpages;
    sev.answer(0, outcome(BigInt(ret), 0));
    return;
  }
  const status = callFirmware(sev, request, response);
  // The early form tells the guest also where the host could not carry the message.
  if (typeof status !== 'number') sev.answer(0, outcome(VMM.EARLY_GENERIC, 0));
  else sev.answer(0, outcome(status === 0 ? 0n : VMM.EARLY_GENERIC, status));
}
