/*
 * The boot stub: the first code of a guest. It runs from shared memory outside RAM, copies the image into RAM, which may be
 * private and which nobody but the guest can fill, and jumps to the image's entry. The VMM (src/vmm/loaders/boot-area.ts)
 * lays out the boot information in the page before it.
 *
 * In:  64-bit mode, CPL 0, interrupts off, EDI = index of the vCPU; all other general registers 0.
 * Out: RIP = entry, RSP as told, EDI as it was, all other general registers 0.
 *
 * vCPU 0 copies; the others wait for it. Position-independent; uses no stack.
 */
        .set    INFO_ENTRY, 0x00
        .set    INFO_RSP, 0x08
        .set    INFO_READY, 0x10
        .set    INFO_COUNT, 0x14
        .set    INFO_RECORDS, 0x20
        .set    RECORD_SOURCE, 0x00
        .set    RECORD_DESTINATION, 0x08
        .set    RECORD_COPY, 0x10
        .set    RECORD_CLEAR, 0x18
        .set    RECORD_BYTES, 0x20

        .text
        .code64
stub:
        cld
        mov     %edi, %r8d
        lea     stub-0x1000(%rip), %r9
        test    %r8d, %r8d
        jnz     wait

        lea     INFO_RECORDS(%r9), %r10
        mov     INFO_COUNT(%r9), %r11d
next_record:
        test    %r11d, %r11d
        jz      ready
        mov     RECORD_SOURCE(%r10), %rsi
        mov     RECORD_DESTINATION(%r10), %rdi
        mov     RECORD_COPY(%r10), %rdx
        mov     %rdx, %rcx
        shr     $3, %rcx
        rep movsq
        mov     %edx, %ecx
        and     $7, %ecx
        rep movsb
        xor     %eax, %eax
        mov     RECORD_CLEAR(%r10), %rcx
        rep stosb
        add     $RECORD_BYTES, %r10
        dec     %r11d
        jmp     next_record

ready:
        movl    $1, INFO_READY(%r9)
        jmp     enter
wait:
        pause
        cmpl    $0, INFO_READY(%r9)
        je      wait

enter:
        mov     INFO_RSP(%r9), %rsp
        mov     %r8d, %edi
        xor     %eax, %eax
        xor     %ecx, %ecx
        xor     %edx, %edx
        xor     %esi, %esi
        xor     %r8d, %r8d
        xor     %r9d, %r9d
        xor     %r10d, %r10d
        xor     %r11d, %r11d
        jmp     *stub-0x1000+INFO_ENTRY(%rip)
